"""Languages: every text is there, errors too, and numbers stay with their units."""

from __future__ import annotations

import ast
import inspect
import re
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.errors import MirrorError
from mirror.guards import deciding, facts
from mirror.guards.deciding import Facts, decide
from mirror.guards.rules import Asked, Conditions, Image, Rule
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.storage.scans import SEVERITIES
from mirror.storage.sightings import Sighting
from mirror.web import filters, guard_reasons, site, texts, translations
from tests.support.dashboard import HTML, post
from tests.support.mirrors import Mirror


def test_every_text_is_there_in_every_language() -> None:
    """With the same things filled in; and every key that the templates name exists, and is named somewhere."""
    fields = string.Formatter()
    for key in sorted(translations.keys()):
        written = [texts.TEXTS[key][place] for place in range(len(translations.LANGUAGES))]
        assert all(written), key
        names = [{name for _, name, _, _ in fields.parse(text) if name} - {"n"} for text in written]
        assert names[0] == names[1], key
        assert "|" not in written[1], "Chinese has no plural"
    folder = Path(site.__file__).parent / "templates"
    source = "".join(file.read_text() for file in folder.glob("*.html"))
    named = set(re.findall(r"\bt\('([a-z_]+)'(?! ~)", source))
    made = set(re.findall(r"\bt\('([a-z_]+)' ~", source))
    assert named <= translations.keys()
    assert {key for key in translations.keys() - named if not key.startswith(tuple(made))} == set()


async def test_errors_are_told_in_the_language_of_the_page(dashboard: Mirror) -> None:
    """What is wrong in words of that language; the details are as the program has them."""
    for accept, words in (
        ("en", ("that is not the admin token", "nothing is cached")),
        ("zh", ("管理员令牌不正确", "缓存中没有")),
    ):
        headers = {**HTML, "Accept-Language": accept}
        status, page, _ = await post(dashboard, "/login", {"token": "wrong"}, **headers)
        assert (status, words[0] in page) == (401, True)
        missing = (await dashboard.get("/repository/docker.io/library/none", **headers)).body.decode()
        assert words[1] in missing
        # What is searched for on the web stays as it is.
        assert "nothing is cached of docker.io/library/none" in missing


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no connection with https://registry-1.docker.io: Connection refused", "拒绝连接"),
        ("registry-1.docker.io cannot be resolved: Temporary failure in name resolution", "DNS"),
        ("https://ghcr.io did not answer in time", "未在限定时间内应答"),
        ("signatures and the like may be missing: ghcr.io did not answer in time", "签名等附属内容"),
        ("2 of its blobs are not kept: the cache is full", "有 2 个数据块未能保留"),
        ("the file /srv/our lab.txt cannot be read: No such file or directory", "无法读取 /srv/our lab.txt"),
        ("this mirror is offline (upstream.offline), so no registry is asked", "镜像站处于离线模式"),
        ("offline (upstream.offline), and not in the cache: docker.io/library/none:1; the cache is empty", "缓存中没有此内容"),
        ("/srv/lab.txt names no image: write one per line", "/srv/lab.txt 中没有镜像名称"),
        ("https://x.example sent nothing for 15 s", "上游 15 秒内没有发送任何数据"),
        ("https://x.example answered 429: too many requests", "429"),
        ("docker.io has answered 429: it is asked again in 7 s", "7 秒后再试"),
        ("that is not the admin token, and there were many wrong ones from this address", "错误次数较多"),
        ("https://x.example answered 502", "上游服务器出错"),
        ("docker.io does not let anyone pull owner/secret, or has no such repository", "需要账号"),
        ("docker.io is paused for 20 s after failures: Connection refused", "拒绝连接"),
        (
            "none of docker.io's endpoints gave it: http://a: Connection refused; http://b has no tag 1",
            "docker.io 的各个上游地址",
        ),
        (
            "no TLS connection with https://x.example: certificate verify failed: unable to get local issuer certificate",
            "证书不可信",
        ),
        ("upstream's bytes for sha256:00 are not what their digest says", "与摘要不符"),
        ("the cache's disk refuses: No space left on device", "磁盘空间不足"),
        ("it means sha256:00 at its registry now, and not what was to be released", "请重新载入页面"),
        ("nothing is cached of docker.io/library/none:1", "缓存中没有 docker.io/library/none:1"),
        ("docker.io/library/app:1 is refused by the guard 'ours': it is denied", "被规则 ours 拒绝"),
        ("docker.io/library/app:1 is pinned: unpin it first, or force it", "docker.io/library/app:1 已固定"),
    ],
)
def test_usual_errors_are_explained_in_chinese(message: str, words: str) -> None:
    """By their words, also where only those are known; the English page has them as they are."""
    assert words in translations.explain("zh", message)
    assert translations.explain("en", message) == message


def test_every_error_has_a_chinese_explanation() -> None:
    """By its class, where nobody knows its words."""

    def classes(kind: type[MirrorError]) -> Iterator[type[MirrorError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from classes(below)

    for kind in classes(MirrorError):
        error = kind.__new__(kind)
        assert re.search("[\u4e00-\u9fff]", translations.explain("zh", "xyzzy", error)), kind
    assert translations.explain("zh", "xyzzy") == "xyzzy"


def test_numbers_stay_with_their_units_and_names_whole() -> None:
    """No line begins with a unit, and a name breaks after slashes and before its tag only."""
    for text in (
        filters.size(1013 * 2**20),
        filters.rate(5e6),
        filters.percent(1, 3),
        filters.span(7500, "en"),
        filters.span(0.02, "zh"),
    ):
        assert "\u00a0" in text
        assert " " not in text
    now = time.time()
    for language in translations.LANGUAGES:
        assert all(" " not in filters.ago(now - seconds, language).removeprefix("just ") for seconds in (1, 30, 90, 90_000))
    assert filters.ago(now - 30, "en") == "<\u00a01\u00a0min\u00a0ago"
    assert filters.breakable("ghcr.io/a/<b>:1") == "ghcr.io/<wbr>a/<wbr>&lt;b&gt;<wbr>:1"
    for image, name in (("docker.io/library/redis:7", "redis:7"), ("docker.io/a/b:1", "a/b:1"), ("quay.io/library/b:1",) * 2):
        assert filters.familiar(image) == name


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("fr,zh;q=0.2", "zh"),
        ("zh;q=0", "en"),
        ("zh;q=nan,;;,=,zh;q=x", "en"),
        ("ZH-Hans", "zh"),
        ("de", "en"),
    ],
)
def test_the_browsers_language_is_spoken(accept: str, language: str) -> None:
    """The one that it likes best of those that there are."""
    assert translations.preferred(accept) == language


def findings() -> list[str]:
    """A reason of each check, as guards give it; with what must stay as somebody wrote it in angle brackets."""
    now, digest, other = 1.7e9, Digest.of(b"1"), Digest.of(b"2")
    repository = Repository("docker.io", "library/app")
    seen = Sighting(Descriptor("", other, 1), now - 9, now - 9, now - 9)
    moved = Sighting(Descriptor("", digest, 1), now - 5, now - 5)
    images = {digest: Image("", created=1.0), other: Image("", created=2.0)}
    listed = {
        digest: Image("index"),
        other: Image("index"),
        **{
            Digest.of(b"%d" % number): Image("", frozenset({f"<{'ab'[number % 2]}>"}), created=9.0 - number)
            for number in range(3, 5)
        },
        **{Digest.of(b"%d" % number): Image("", frozenset({f"<{'ab'[number % 2]}>"}), created=30.0) for number in range(6, 8)},
        Digest.of(b"5"): Image("", labels={"x": "y"}),
    }
    children = {other: [Digest.of(b"6"), Digest.of(b"7")], digest: [Digest.of(b"3"), Digest.of(b"4")]}
    every: dict[str, tuple[Rule, Facts]] = {
        "deny": (Rule("r", deny=Conditions()), Facts((seen, moved))),
        "blocked": (Rule("r", blocked={digest.hex: ""}), Facts((moved,))),
        "blocked why": (Rule("r", blocked={digest.hex: "<a miner>"}), Facts((moved,))),
        "named": (Rule("r", blocked={other.hex: ""}), Facts((moved,), names={digest: [other]})),
        "named why": (Rule("r", blocked={other.hex: "<a miner>"}), Facts((moved,), names={digest: [other]})),
        "cooldown": (Rule("r", cooldown=9), Facts((seen, moved))),
        "new": (Rule("r", cooldown=9, new_tags_wait=True), Facts((moved,))),
        "strict": (Rule("r", cooldown=9, strict=True), Facts((moved,), held=True)),
        "immutable": (Rule("r", immutable=True), Facts((seen, moved))),
        "older": (Rule("r", refuse_older=True), Facts((seen, moved), images=images)),
        "older in an index": (Rule("r", refuse_older=True), Facts((seen, moved), images=listed, children=children)),
        "denied in an index": (
            Rule("r", deny=Conditions(platforms=("<b>",))),
            Facts((moved,), images=listed, children={digest: [Digest.of(b"3"), Digest.of(b"4")]}),
        ),
        "denied without a platform": (
            Rule("r", deny=Conditions(labels={"x": "y"})),
            Facts((moved,), images=listed, children={digest: [Digest.of(b"5")]}),
        ),
    }
    for severity in SEVERITIES[1:]:
        every[severity] = Rule("r", max_severity="none"), Facts((moved,), severities={digest: severity})
    for why in (
        "it has no signature by the keys or identities that are required",
        "its signatures cannot be read: Connection refused",
    ):
        every[why] = Rule("r", signed=()), Facts((moved,), unsigned={("r", digest): why})
    found = {name: decide([rule], Asked(repository, "1", digest), facts, now).finding for name, (rule, facts) in every.items()}
    assert {name for name, finding in found.items() if finding is None} == set()
    assert {finding.check for finding in found.values() if finding is not None} == {
        *Rule(
            "", cooldown=1.0, blocked={"": ""}, deny=Conditions(), immutable=True, refuse_older=True, max_severity="", signed=()
        ).checks
    }
    return [finding.reason for finding in found.values() if finding is not None]


def test_why_something_is_refused_is_told_in_chinese() -> None:
    """In whole, for each check and each of its forms; but for what somebody wrote in a list, digests and times."""
    for reason in findings():
        assert guard_reasons.reason("en", reason) == reason
        told = re.sub(r"<.*?>|sha256:[0-9a-f]+|\d+-\d+-\d+T[\d:]+Z", "", guard_reasons.reason("zh", reason))
        assert re.search("[\u4e00-\u9fff]", told), reason
        assert not re.search("[A-Za-z]", told), reason
        assert ("<a miner>" in guard_reasons.reason("zh", reason)) == ("<a miner>" in reason)
    assert guard_reasons.reason("zh", "ask the platform team") == "ask the platform team"


def test_every_reason_in_the_code_has_a_chinese_form() -> None:
    """What deciding.py and facts.py may say: each piece of text with more than a word is in one of the forms."""
    forms = "\n".join([*(pattern.pattern for pattern, _ in guard_reasons._FORMS), guard_reasons._UNREAD])
    pieces = set()
    for module in (deciding, facts):
        tree = ast.parse(inspect.getsource(module))
        told = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}  # docstrings
        told |= {
            id(below)
            for one in ast.walk(tree)
            if isinstance(one, ast.Call) and ast.unparse(one.func).startswith("log.")
            for below in ast.walk(one)
        }
        for one in ast.walk(tree):
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in told and " " in one.value.strip():
                pieces.add(one.value.strip(" ;:,"))
    assert "it is denied" in pieces
    assert {piece for piece in pieces if piece not in forms} == set()
