"""SIGHUP takes a mirror offline, and online again, while downloads are under way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from mirror.names import Digest
from tests.support.commands import Commands
from tests.support.mirrors import Got, MirrorProcess, read_to_end, until
from tests.support.scripted import Cut, Hold, Image, Pending, Scripted

SIZE = 3_000_000
SETTINGS = """
[cache]
tag_ttl = 0
negative_ttl = 0
prefetch = false
[upstream]
header_timeout = 60
stall_timeout = 60
offline = {offline}
"""


class Switched:
    """A mirror that takes `upstream.offline` from its settings file."""

    def __init__(self, mirror: MirrorProcess, config: Path) -> None:
        self.mirror = mirror
        self._config = config

    async def switch(self, offline: bool) -> None:
        """Returns when every worker has answered so, as far as twenty answers tell."""
        self._config.write_text(SETTINGS.format(offline=str(offline).lower()))
        os.kill(self.mirror.pid, signal.SIGHUP)
        agree = 0
        while agree < 20:
            ready = await self.get("/readyz")
            agree = agree + 1 if json.loads(ready.body)["offline"] is offline else 0

    async def get(self, path: str) -> Got:
        """On a connection of its own, which any worker may take."""
        async with aiohttp.ClientSession(self.mirror.url) as session, session.get(path) as answer:
            return await read_to_end(answer)

    def cached(self, digest: Digest) -> bool:
        return (self.mirror.directory / "blobs" / "sha256" / digest.hex).exists()

    def blobs(self) -> list[Path]:
        return list((self.mirror.directory / "blobs" / "sha256").iterdir())


def message(got: Got) -> str:
    (error,) = json.loads(got.body)["errors"]
    assert error["code"] == "UNAVAILABLE"
    return str(error["message"])


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_downloads_under_way_end_whole_or_with_an_error(tmp_path: Path, upstream: Scripted, workers: str) -> None:
    """Of forty downloads, those whose bytes come when the switch is turned come whole, for those who wait and for those who join them offline; those that upstream breaks off
    then are cut short, and those that upstream has not answered either come whole or are errors that say why. Nothing is cached that is not its digest. Nothing new
    is asked of upstream. Online again, every miss is fetched, and what had come of a download is not fetched twice."""
    layers = {kind: [os.urandom(SIZE) for _ in range(10)] for kind in ("steady", "broken", "silent", "late")}
    images: dict[str, list[Image]] = {
        kind: [upstream.add_image(f"library/{kind}{number}", "1", layers=[layer]) for number, layer in enumerate(some)]
        for kind, some in layers.items()
    }
    config = tmp_path / "mirror.toml"
    config.write_text(SETTINGS.format(offline="false"))
    arguments = ("--config", str(config), "--workers", workers)
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, *arguments) as process:
        mirror = Switched(process, config)

        def path(kind: str, number: int) -> str:
            return f"/v2/{kind}{number}/blobs/{images[kind][number].layers[0]}"

        for kind in layers:
            for number in range(10):
                assert (await mirror.get(f"/v2/{kind}{number}/manifests/1")).status == 200
        half = {kind: [Hold(after=SIZE // 2) for _ in range(10)] for kind in ("steady", "broken")}
        silent = [Pending() for _ in range(10)]
        for number in range(10):
            upstream.fail(str(images["steady"][number].layers[0]), half["steady"][number])
            upstream.fail(str(images["broken"][number].layers[0]), half["broken"][number] & Cut(after=SIZE // 2 + 1))
            upstream.fail(str(images["silent"][number].layers[0]), silent[number])
        waiting = {
            (kind, number): asyncio.create_task(mirror.get(path(kind, number)))
            for kind in ("steady", "broken", "silent")
            for number in range(10)
        }
        reached = [*(hold.reached for holds in half.values() for hold in holds), *(pending.reached for pending in silent)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(event.wait() for event in reached))
        await mirror.switch(True)
        asked = len(upstream.asked)
        joining = [asyncio.create_task(mirror.get(path("steady", number))) for number in range(10)]
        for number in range(10):
            refused = await mirror.get(path("late", number))
            assert (refused.status, f"cached of docker.io/library/late{number}: 1" in message(refused)) == (404, True)
            # Its manifest's tag would be checked: it is old at once.
            assert (await mirror.get(f"/v2/late{number}/manifests/1")).status == 200
        for holds in half.values():
            for hold in holds:
                hold.release.set()
        for pending in silent:
            pending.release.set()
        async with asyncio.timeout(60):
            got = dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))
            joined = await asyncio.gather(*joining)
        for number in range(10):
            for whole in (got["steady", number], joined[number]):
                assert (whole.status, whole.cut, whole.digest()) == (200, False, images["steady"][number].layers[0])
            broken = got["broken", number]
            assert (broken.status, broken.cut) == (200, True)
            assert layers["broken"][number].startswith(broken.body)
            assert len(broken.body) < SIZE
            late = got["silent", number]
            if late.status == 200:
                assert late.digest() == images["silent"][number].layers[0]
            else:
                assert "offline (upstream.offline)" in message(late)
        # Those that were cut are over, and are misses now.
        for number in range(10):
            assert "offline (upstream.offline)" in message(await mirror.get(path("broken", number)))
            assert not mirror.cached(images["broken"][number].layers[0])
        assert len(upstream.asked) == asked
        for blob in mirror.blobs():
            assert Digest.of(blob.read_bytes()).hex == blob.name

        await mirror.switch(False)
        for kind in layers:
            for number in range(10):
                whole = await mirror.get(path(kind, number))
                layer = images[kind][number].layers[0]
                assert (whole.status, whole.cut, whole.digest()) == (200, False, layer)
                await until(lambda layer=layer: mirror.cached(layer))
                assert upstream.sent[str(layer)] < SIZE * 1.05, (kind, number)
        assert "0 damaged" in await Commands(tmp_path / "cache", upstream)("verify")
        assert process.terminate() == 0
        assert "Traceback" not in process.log
