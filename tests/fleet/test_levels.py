"""Three levels of real mirrors: a fleet of a branch, the fleet of headquarters above it, and the registry."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.names import Digest
from mirror.upstream.fleet import ranked
from tests.fleet.test_fleet import of
from tests.fleet.test_rules import BY_PEER
from tests.support.members import directory
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.scripted import Hold, Scripted, Status

TAG = "/v2/library/app/manifests/1"
MIB = 1024 * 1024


@dataclass
class Levels:
    """Two fleets of two, by their mirrors' URLs, and the home in each, for a key, before the other one."""

    start: StartMirror
    folder: Path
    above: dict[str, Mirror]
    below: dict[str, Mirror]

    @property
    def all(self) -> list[Mirror]:
        return [*self.above.values(), *self.below.values()]

    def in_order(self, fleet: dict[str, Mirror], key: Digest | str = "docker.io/library/app:1") -> list[Mirror]:
        return [fleet[url] for url in ranked(tuple(fleet), str(key))]

    async def run(self, urls: list[str], parents: list[str]) -> dict[str, Mirror]:
        return {
            url: await self.start(
                directory(self.folder, url),
                settings={
                    "server": {"listen": url.removeprefix("http://")},
                    "fleet": {"mirrors": urls, "own": url, "parents": parents},
                },
                tag_ttl="300s",
            )
            for url in urls
        }


@pytest.fixture
async def levels(start: StartMirror, tmp_path: Path) -> Levels:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(4)]
    found = Levels(start, tmp_path, {}, {})
    found.above = await found.run(urls[:2], [])
    found.below = await found.run(urls[2:], urls[:2])
    return found


@pytest.mark.parametrize("age", [200, 400])
async def test_a_tag_is_as_old_at_each_mirror_as_its_registry_s_word(levels: Levels, upstream: Scripted, age: int) -> None:
    """So `cache.tag_ttl` holds for all levels together: the branch asks no later than headquarters has to, and what is too old there is asked of the registry, once."""
    image = upstream.add_image("library/app", "1")
    home, _ = levels.in_order(levels.above)
    assert (await home.get(TAG)).body == image.body
    asked = len(upstream.asked)
    urls = list(levels.above)
    for mirror in levels.above.values():
        await mirror.stop()
    with contextlib.closing(sqlite3.connect(home.directory / "catalog" / "content.sqlite")) as catalog, catalog:
        assert catalog.execute("UPDATE tag SET checked = checked - ?", (age,)).rowcount == 1
    levels.above = await levels.run(urls, [])
    for mirror in levels.all:
        assert (await mirror.get(TAG)).body == image.body
    is_fresh = age < 300
    for mirror in levels.all:
        said = int((await mirror.get(TAG, **BY_PEER)).headers["Age"])
        assert (age if is_fresh else 0) <= said < (age if is_fresh else 0) + PATIENCE
    assert len(upstream.asked) - asked == (0 if is_fresh else 1)


@pytest.mark.parametrize(
    ("fault", "status", "again"),
    [(None, 404, None), (Status(429, {"Retry-After": "77"}), 503, "77")],
    ids=["not there", "limited"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_the_registry_says_is_believed_two_levels_below(
    levels: Levels, upstream: Scripted, fault: Status | None, status: int, again: str | None, method: str
) -> None:
    """That it has not got a manifest or a blob, and that it limits requests: with when to come again, and without asking it once more."""
    blob = Digest.of(os.urandom(10))
    if fault is not None:
        upstream.fail("/v2/library/app/", fault, times=1000, method="*")
    for path, key in ((TAG, "docker.io/library/app:1"), (of(blob), blob)):
        _, asked = levels.in_order(levels.below, key)
        got = await asked.get(path, method)
        assert got.status == status
        wait = got.headers.get("Retry-After")
        assert wait == again or (again is not None and int(wait) <= int(again) and int(wait) > int(again) - PATIENCE)
    assert upstream.count(method, TAG) <= 1
    assert upstream.count(method, str(blob)) <= 1


async def test_a_blob_crosses_each_level_once(levels: Levels, upstream: Scripted) -> None:
    """Whoever asks at the bottom, and however many, while it comes in and after that: the homes alone ask the level above."""
    digest = upstream.add_blob(data := os.urandom(8 * MIB))
    hold = Hold(6 * MIB)
    upstream.fail(str(digest), hold)
    mirrors = levels.in_order(levels.below, digest)
    counted = "mirror_peer_received_bytes_total"
    # All mirrors of this process count together.
    before = await mirrors[0].metric(counted)
    clients = [asyncio.create_task(mirror.get(of(digest))) for mirror in mirrors for _ in range(5)]
    await hold.reached.wait()
    while await mirrors[0].metric(counted) - before < 2 * 6 * MIB:
        await asyncio.sleep(0.01)
    hold.release.set()
    assert all(got.body == data for got in await asyncio.gather(*clients))
    await until(lambda: all(mirror.cached(digest) for mirror in mirrors))
    assert await mirrors[0].metric(counted) - before == 2 * len(data)
    assert upstream.count("GET", str(digest)) == 1
