"""What an admin changes: images are pinned, deleted and fetched."""

from __future__ import annotations

import asyncio
import json
import os
import re

import pytest

from mirror.web import actions
from tests.support.dashboard import HTML, events, log_in, post, token
from tests.support.mirrors import Mirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Scripted


async def test_several_images_are_changed_at_once(dashboard: Mirror, upstream: Scripted) -> None:
    """Those that were selected and no others; where one cannot be changed, the rest are, and the answer says which it was."""
    names = [f"docker.io/library/app:{tag}" for tag in ("1", "2", "3")]
    for tag in ("2", "3"):
        upstream.add_image("library/app", tag)
        await dashboard.get(f"/v2/app/manifests/{tag}")
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}

    async def several(action: str, images: list[str], **headers: str) -> tuple[int, str]:
        body = {"action": action, "image": images}
        async with dashboard.session.post("/images", json=body, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text()

    def badges(page: str) -> int:
        return page.count('<span class="badge accent">')

    async def pins() -> int:
        return badges((await dashboard.get("/repository/docker.io/library/app", **HTML)).body.decode())

    assert (await several("pin", names[:2]))[0] == 401
    assert await pins() == 0
    assert (await several("pin", names[:2], **bearer))[0] == 200
    assert await pins() == 2
    status, text = await several("delete", names, **bearer)
    assert status == 409
    assert "1 of 3 images were changed" in text
    assert names[0] in text
    assert names[1] in text
    assert [(await dashboard.get(f"/image/{name}", **HTML)).status for name in names] == [200, 200, 404]
    for images in ([], [f"docker.io/library/app:{tag}" for tag in range(51)]):
        assert (await several("unpin", images, **bearer))[0] == 400
    assert (await several("fetch", names[:1], **bearer))[0] == 400
    assert await pins() == 2


async def test_the_list_has_boxes_for_the_admin_alone(dashboard: Mirror) -> None:
    """A form leads back to the page that it was sent from."""
    for path in ("/?view=images&order=size", "/?q=app", "/repository/docker.io/library/app?order=size"):
        assert b'name="image"' not in (await dashboard.get(path, **HTML)).body
        cookie = await log_in(dashboard)
        page = (await dashboard.get(path, Cookie=cookie, **HTML)).body.decode()
        assert page.count('name="image"') == 1
        hidden = dict(re.findall(r'type="hidden" name="(secret|to)" value="([^"]*)"', page))
        form = {
            "image": "docker.io/library/app:1",
            "action": "pin",
            **{key: value.replace("&amp;", "&") for key, value in hidden.items()},
        }
        status, _, headers = await post(dashboard, "/images", form, Cookie=cookie, Origin=dashboard.url, **HTML)
        assert status == 303
        assert set(re.split("[?&]", headers["Location"])) == {*re.split("[?&]", path), "done=pinned"}


async def test_what_is_not_cached_can_be_fetched(dashboard: Mirror, upstream: Scripted) -> None:
    """With the token: the whole image for a platform, as mirror pull does; its bytes are counted as pulled. What upstream lacks is told at once."""
    image = upstream.add_image("library/other", "1", layers=[os.urandom(3000), os.urandom(500)])
    path = "/image/docker.io/library/other:1"
    page = await dashboard.get(path, **HTML)
    assert (page.status, b"Not in the cache" in page.body, b'value="fetch"' in page.body) == (404, True, False)
    offered = await dashboard.get(path, Cookie=await log_in(dashboard), **HTML)
    assert (offered.status, b'value="fetch"' in offered.body) == (404, True)
    form = {"action": "fetch", "platform": "linux/amd64"}
    assert (await post(dashboard, path, form))[0] == 401
    assert not any("library/other" in asked.path for asked in upstream.asked)
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}
    before = await dashboard.metric("mirror_prefetched_bytes_total")
    status, body, _ = await post(dashboard, path, form, **bearer)
    assert (status, json.loads(body)) == (200, {"done": "fetched", "image": "docker.io/library/other:1"})
    assert all(dashboard.cached(digest) for digest in (*image.layers, image.config))
    assert await dashboard.metric("mirror_prefetched_bytes_total") - before == 3500 + len(upstream.blobs[str(image.config)])
    assert b"complete" in (await dashboard.get(path, **HTML)).body
    assert (await post(dashboard, "/image/docker.io/library/none:1", form, **bearer))[0] == 404
    assert (await post(dashboard, path, {"action": "fetch", "platform": "amd64; x"}, **bearer))[0] == 400


async def test_a_long_fetch_goes_on_behind_and_tells_its_failure(
    dashboard: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever began it is shown the list of downloads, which says in the end why it failed."""
    monkeypatch.setattr(actions, "_PATIENCE", 0.0)
    image = upstream.add_image("library/other", "1", layers=[os.urandom(1_000_000)])
    hold = Hold(after=300_000)
    upstream.fail(str(image.layers[0]), hold)
    bearer = {"Authorization": f"Bearer {token(dashboard)}"}
    status, _, headers = await post(dashboard, "/image/docker.io/library/other:1", {"action": "fetch"}, **bearer, **HTML)
    assert (status, headers["Location"]) == (303, "/?done=fetching")
    await hold.reached.wait()
    await upstream.stop()
    parts: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE):
        async for news in events(dashboard.session):
            parts.update(news)
            if "/image/docker.io/library/other:1" in parts["downloads"] and "failed: " in parts["downloads"]:
                break
