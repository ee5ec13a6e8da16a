"""Languages: every text is there, errors too, and numbers stay with their units."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.errors import MirrorError
from mirror.web import filters, site, texts, translations
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
        ("nothing is cached of docker.io/library/none:1", "缓存中没有 docker.io/library/none:1"),
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
