"""The page about guards, and the history on an image's page."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.cache.guarding import Ruling
from mirror.config import load
from mirror.guards.gate import Gate
from mirror.names import Repository, Tag
from mirror.storage.scans import ScanResult, keep_scan_result
from mirror.web import worked_out
from mirror.wiring import store
from tests.support.dashboard import HTML, log_in, post, token
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import patiently
from tests.support.scripted import Scripted
from tests.support.sigstore import new_key

LATEST = "/v2/app/manifests/latest"
NAME = "docker.io/library/app:latest"


@pytest.fixture
async def held(start: StartMirror, upstream: Scripted) -> Mirror:
    """A mirror that holds back what docker.io/library/app:latest means."""
    mirror: Mirror = await start(tag_ttl=0, settings={"guard": [{"name": "cool", "cooldown": "3d"}]})
    for entrypoint, variable in (("old", "A=1"), ("new", "A=2")):
        config = {"Entrypoint": [entrypoint], "Env": [variable], "Labels": {entrypoint: "x"}}
        image = upstream.add_image("library/app", "latest", configuration={"config": config, "rootfs": {"type": "layers"}})
        assert (await mirror.get(LATEST)).status == 200
        # The new one too, by its digest.
        assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).status == 200
        for blob in (image.config, *image.layers):
            await mirror.get(f"/v2/app/blobs/{blob}")
            await mirror.until_cached(blob)
    return mirror


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ["Held back", "Tags that moved", "served the image before", "Nothing is blocked by hand"]),
        ("zh", ["暂缓的标签", "移动过的标签", "提供了先前的镜像", "没有手动封禁的内容"]),
    ],
)
async def test_the_page_says_what_moved_what_is_held_and_what_rules_have_done(
    held: Mirror, language: str, words: list[str]
) -> None:
    """In both languages, to whoever looks; the buttons are for the admin."""
    page = (await held.get("/guards", Accept_Language=language, **HTML)).body.decode()
    for word in words:
        assert word in page
    assert page.count(NAME.replace("/", "/<wbr>").replace(":latest", "<wbr>:latest")) == 3
    assert 'name="action"' not in page
    page = (await held.get("/guards", Cookie=await log_in(held), **HTML)).body.decode()
    assert re.findall(r'name="action" value="(\w+)"', page) == ["release", "block"]


async def test_the_button_releases_a_tag_with_the_reason(held: Mirror, upstream: Scripted) -> None:
    """And nobody does so without the token, or without a reason."""
    form = {"action": "release", "image": NAME, "why": "urgent"}
    assert (await post(held, "/guards", form))[0] == 401
    bearer = {"Authorization": f"Bearer {token(held)}"}
    assert (await post(held, "/guards", form | {"why": ""}, **bearer))[0] == 400
    assert "Mirror-Tag" in (await held.get(LATEST)).headers
    assert (await post(held, "/guards", form, **bearer))[:2] == (200, json.dumps({"done": "released"}))
    got = await held.get(LATEST)
    assert ("Mirror-Tag" in got.headers, got.headers["Docker-Content-Digest"]) == (
        False,
        str(upstream.manifests and got.digest()),
    )
    page = (await held.get(f"/image/{NAME}", **HTML)).body.decode()
    assert "released by the dashboard, from 127.0.0.1: urgent" in page


async def test_the_button_releases_only_what_the_page_shows(held: Mirror, upstream: Scripted) -> None:
    """The tag moves once more while somebody looks at the page: what nobody has looked at is not released, and the answer says so."""
    page = (await held.get("/guards", Cookie=await log_in(held), **HTML)).body.decode()
    [shown] = re.findall(r'name="digest" value="(sha256:\w+)"', part(page, "held"))
    newest = upstream.add_image("library/app", "latest").digest
    assert str(newest) in (await held.get(LATEST)).headers["Mirror-Tag"]
    form = {"action": "release", "image": NAME, "why": "urgent", "digest": shown}
    status, body, _ = await post(held, "/guards", form, Authorization=f"Bearer {token(held)}")
    assert (status, f"it means {newest} at its registry now" in body) == (400, True)
    assert "Mirror-Tag" in (await held.get(LATEST)).headers


async def test_a_digest_is_blocked_and_unblocked_on_the_page(held: Mirror, upstream: Scripted) -> None:
    """At once in this process; what is not a digest is an error, and so is what was not blocked."""
    bearer = {"Authorization": f"Bearer {token(held)}"}
    digest = str((await held.get(LATEST)).digest())
    block = {"action": "block", "digest": digest, "why": "a miner <b>"}
    assert (await post(held, "/guards", block | {"digest": "latest"}, **bearer))[0] == 400
    assert (await post(held, "/guards", block, **bearer))[0] == 200
    assert (await held.get(f"/v2/app/manifests/{digest}")).status == 403
    page = (await held.get("/guards", **HTML)).body.decode()
    assert digest in page
    assert "a miner &lt;b&gt;" in page
    assert (await post(held, "/guards", {"action": "unblock", "digest": digest}, **bearer))[0] == 200
    assert (await post(held, "/guards", {"action": "unblock", "digest": digest}, **bearer))[0] == 404
    assert (await held.get(f"/v2/app/manifests/{digest}")).status == 200


async def test_an_images_page_says_what_its_tag_has_meant_and_what_changed(held: Mirror, upstream: Scripted) -> None:
    """Layers, size, entrypoint, environment and labels, of images that are still cached."""
    page = (await held.get(f"/image/{NAME}", **HTML)).body.decode()
    assert "What the tag has meant" in page
    assert "never served" in page
    assert upstream.url in page
    for change in ("1 of 1 layers are new", "entrypoint: new, before: old", "environment: A", "labels: +new, -old"):
        assert change in page


async def test_what_anybody_looks_at_is_decided_on_once_in_a_while(held: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look, together or one after the other, each tag that is held is decided on once; for an admin, and after a change by hand, anew."""
    decided, decide = list[str](), Gate.explain

    async def explain(gate: Gate, repository: Repository, tag: Tag) -> Ruling:
        decided.append(tag.value)
        return await decide(gate, repository, tag)

    monkeypatch.setattr(Gate, "explain", explain)
    monkeypatch.setattr(worked_out, "_FRESH", 3600.0)
    for _ in range(2):
        pages = await asyncio.gather(*(held.get("/guards", **HTML) for _ in range(10)))
        assert all("the tag moved to it on" in page.body.decode() for page in pages)
        assert decided == ["latest"]
    cookie = await log_in(held)
    for count in (2, 3):
        await held.get("/guards", Cookie=cookie, **HTML)
        assert len(decided) == count
    form = {"action": "release", "image": NAME, "why": "urgent"}
    assert (await post(held, "/guards", form, Authorization=f"Bearer {token(held)}"))[0] == 200
    assert "Nothing is held back" in (await held.get("/guards", **HTML)).body.decode()
    assert len(decided) == 4


def part(page: str, name: str) -> str:
    """The section of a page with an ID; empty if it has none."""
    return page.partition(f'id="{name}"')[2].partition("</section>")[0]


REFUSING: dict[str, dict[str, Any]] = {
    "deny": {"deny": {"labels": {"mined": "*"}}},
    "blocklist": {"blocklist": ["{list}"]},
    "max_severity": {"max_severity": "low"},
    "signed": {"signed": {"keys": ["{key}"]}},
}
"""Tables that refuse the image which a tag has moved to, whatever one releases, by check."""


@pytest.mark.parametrize("check", REFUSING)
@pytest.mark.parametrize("first", [True, False], ids=["first", "moved"])
async def test_what_no_release_helps_is_shown_as_refused(
    start: StartMirror, upstream: Scripted, tmp_path: Path, check: str, first: bool
) -> None:
    """Never as held back, nor as served, and without a button: by which rule, why, since when, what clients get in its place, and what would change it."""
    key, listed = tmp_path / "key.pub", tmp_path / "blocked.txt"
    key.write_bytes(new_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    listed.touch()
    mirror = await start(tag_ttl=0)
    good = None if first else upstream.add_image("library/app", "latest")
    if good is not None:
        # While there is no rule yet: of what is cached, each lets the first one pass but `signed`.
        for path in (LATEST, *(f"/v2/app/blobs/{blob}" for blob in (good.config, *good.layers))):
            assert (await mirror.get(path)).status == 200
    await mirror.stop()
    table = json.loads(json.dumps(REFUSING[check]).replace("{list}", str(listed)).replace("{key}", str(key)))
    mirror = await start(mirror.directory, settings={"guard": [{"name": "strict one", **table}]}, tag_ttl=0)
    bad = upstream.add_image(
        "library/app", "latest", configuration={"config": {"Labels": {"mined": "yes"}}, "rootfs": {"type": "layers"}}
    )
    listed.write_text(f"{bad.digest} a miner\n")
    if check == "max_severity":
        async with store(load(None, {}, {"cache": {"dir": str(mirror.directory)}})) as opened:
            await keep_scan_result(opened, bad.digest, ScanResult("trivy", "high", {"high": 1}, 1.0, 1.0))
    for _ in patiently():
        got = await mirror.get(LATEST)
        if got.status == 403 or got.digest() != bad.digest:
            break
        await asyncio.sleep(0.05)
    served = None if first or check == "signed" else good
    assert got.status == (403 if served is None else 200)
    page = (await mirror.get("/guards", Cookie=await log_in(mirror), Accept_Language="en", **HTML)).body.decode()
    assert "Nothing is held back" in part(page, "held")
    assert 'value="release"' not in page
    refused = part(page, "refused")
    assert str(bad.digest) in refused
    assert ("nothing</td>" in refused) == (served is None)
    assert served is None or str(served.digest) in refused
    assert "strict one: " in refused
    assert "It ends " in refused
    assert "<time datetime=" in refused
    chinese = part((await mirror.get("/guards", Accept_Language="zh", **HTML)).body.decode(), "refused")
    told = re.sub("<[^>]*>", "", chinese.partition("</thead>")[2])
    told = re.sub(r"strict one|a miner|docker\.io/library/app:latest|sha256:\w+", "", told)
    assert not re.search("[A-Za-z]{3}", told), told


async def test_what_is_not_refused_any_more_is_not_shown(held: Mirror) -> None:
    """Once it is released, though nobody has asked for the tag since; and to look at the page asks nobody."""
    page = (await held.get("/guards", **HTML)).body.decode()
    assert NAME in part(page, "held")
    assert part(page, "refused") == ""
    bearer = {"Authorization": f"Bearer {token(held)}"}
    assert (await post(held, "/guards", {"action": "release", "image": NAME, "why": "urgent"}, **bearer))[0] == 200
    page = (await held.get("/guards", **HTML)).body.decode()
    assert "Nothing is held back" in part(page, "held")


async def test_an_admin_sees_to_whom_something_was_refused(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """By the audit log's word, as `mirror who` has it: the address, or the user; also of a layer. Nobody else does, and without a log the page says what is needed."""
    image = upstream.add_image("library/app", "latest")
    settings: dict[str, Any] = {
        "guard": [{"name": "none", "deny": True}],
        "server": {"audit_log": str(tmp_path / "audit.log")},
    }
    mirror = await start(settings=settings)
    for path in (LATEST, LATEST, f"/v2/app/blobs/{image.layers[0]}"):
        assert (await mirror.get(path)).status == 403
    requests = upstream.count("GET") + upstream.count("HEAD")
    cookie = await log_in(mirror)
    for _ in patiently():
        ruled = part((await mirror.get("/guards", Cookie=cookie, Accept_Language="en", **HTML)).body.decode(), "ruled")
        if ruled.count("127.0.0.1") == 2 and "\N{MULTIPLICATION SIGN}2" in ruled:
            break
        await asyncio.sleep(0.05)
    assert "127.0.0.1" not in part((await mirror.get("/guards", **HTML)).body.decode(), "ruled")
    assert upstream.count("GET") + upstream.count("HEAD") == requests
    await mirror.stop()
    mirror = await start(mirror.directory, settings={"guard": settings["guard"]})
    page = (await mirror.get("/guards", Cookie=await log_in(mirror), Accept_Language="en", **HTML)).body.decode()
    assert "set server.audit_log" in part(page, "ruled")
