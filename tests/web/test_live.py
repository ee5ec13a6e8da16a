"""Event streams: what moves on the overview."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import pytest

from mirror.web import live
from tests.support.dashboard import IMAGE, events, post, token
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Scripted


async def test_one_address_has_not_all_event_streams(dashboard: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one gets its own."""
    monkeypatch.setattr(live, "_MOST_FROM_ONE", 1)
    stream = events(dashboard.session)
    await anext(stream)
    assert (await dashboard.get("/events")).status == 503
    async with aiohttp.ClientSession(dashboard.url, connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))) as other:
        await anext(events(other))
    await stream.aclose()  # type: ignore[attr-defined]


async def test_downloads_of_all_processes_are_shown(start: StartMirror, upstream: Scripted) -> None:
    """Two mirrors on one directory: each shows what the other downloads, with the readers of both, until it has landed."""
    one, two = await start(), await start()
    image = upstream.add_image("library/app", "1", layers=[os.urandom(1_000_000)])
    hold = Hold(after=300_000)
    upstream.fail(str(image.layers[0]), hold)
    path = f"/v2/app/blobs/{image.layers[0]}"
    pulls = [asyncio.create_task(mirror.get(path)) for mirror in (one, two)]
    await hold.reached.wait()
    parts: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE):
        async for news in events(two.session):
            parts.update(news)
            if "2 readers" in parts["downloads"]:
                hold.release.set()
            if "done" in parts["downloads"]:
                break
    assert {(await pull).status for pull in pulls} == {200}
    assert "docker.io/library/app" in parts["downloads"]
    await until(lambda: not list((one.directory / "live").glob("*")))


async def test_what_fails_is_shown_with_its_reason(mirror: Mirror, upstream: Scripted) -> None:
    """A download that was given up, and the upstream that went away under it; afterwards nothing is said to be under way."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(1_000_000)])
    hold = Hold(after=300_000)
    upstream.fail(str(image.layers[0]), hold)
    pull = asyncio.create_task(mirror.get(f"/v2/app/blobs/{image.layers[0]}"))
    await hold.reached.wait()
    await upstream.stop()
    parts: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE):
        async for news in events(mirror.session):
            parts.update(news)
            if "failed: " in parts["downloads"]:
                break
        assert ">down</span>" in parts["upstreams"]
        assert "Connection refused" in parts["downloads"]
        assert "Connection refused" in parts["upstreams"]
        async for news in events(mirror.session):
            if "Nothing is being downloaded" in news.get("downloads", ""):
                break
    assert (await pull).cut


async def test_listeners_are_few_and_cost_nothing_when_they_have_left(dashboard: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is asked to come again; each is sent only what has changed."""
    monkeypatch.setattr(live, "_MOST", 1)
    stream = events(dashboard.session)
    told = await anext(stream)
    assert set(told) == {"faults", "figures", "downloads", "traffic", "upstreams", "top", "warm"}
    assert (await dashboard.get("/events")).status == 503
    assert (await post(dashboard, IMAGE, {"action": "pin"}, Authorization=f"Bearer {token(dashboard)}"))[0] == 200
    async with asyncio.timeout(PATIENCE):
        while "1 pinned" not in told["figures"]:
            news = await anext(stream)
            assert all(told[name] != part for name, part in news.items())
            told |= news
    await stream.aclose()  # type: ignore[attr-defined]

    async def free() -> bool:
        async with dashboard.session.get("/events") as response:
            return response.status == 200

    async with asyncio.timeout(PATIENCE):
        while not await free():
            await asyncio.sleep(0.05)


async def test_who_listens_does_not_hold_up_the_end(start: StartMirror) -> None:
    """The stream ends cleanly, at once, although requests may take as long as they like to drain."""
    mirror: Mirror = await start(settings={"server": {"drain_timeout": 600}})
    async with aiohttp.ClientSession(mirror.url) as session:
        stream = events(session)
        await anext(stream)
        async with asyncio.timeout(PATIENCE):
            await mirror.stop()
            # And no more comes of it.
            assert [news async for news in stream if "downloads" in news] == []
