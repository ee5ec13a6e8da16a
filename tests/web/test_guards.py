"""The page about guards, and the history on an image's page."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.dashboard import HTML, log_in, post, token
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted

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
