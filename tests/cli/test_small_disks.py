"""A disk that fills: the default limit, what is said of it and where, and what `mirror pull` blames."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.config import load
from mirror.disk_room import measure
from mirror.names import Digest
from tests.support.commands import Commands
from tests.support.disks import fill, small_disk
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Of 40 MiB."""
    with small_disk(tmp_path / "disk", "40m") as folder:
        yield folder


def get(url: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        return response.status, response.read()


def readyz(mirror: MirrorProcess) -> tuple[int, dict[str, Any]]:
    status, body = get(f"{mirror.url}/readyz")
    return status, json.loads(body)


def test_the_limit_is_a_quarter_of_the_disk_unless_it_is_set(disk: Path) -> None:
    """Of the disk that the cache directory is on, which need not exist yet; the directory's own disk, not that of the working directory."""
    for folder in (disk, disk / "not" / "there"):
        assert load(None, {}, {"cache": {"dir": str(folder)}}).cache.max_size == 10 * MIB
    assert load(None, {}, {"cache": {"dir": str(disk), "max_size": "30MiB"}}).cache.max_size == 30 * MIB


async def test_a_disk_that_others_fill_is_told_everywhere_until_there_is_room(disk: Path, upstream: Scripted) -> None:
    """Less than min_free, then nothing: the log, /readyz (which stays 200), the dashboard, stats and doctor say so, pulls succeed; and the way back."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB)])
    commands = Commands(disk, upstream)
    with MirrorProcess(disk, {"docker.io": upstream.url}, SERVER__ACCESS_LOG="false") as mirror:

        async def told(sentence: str) -> None:
            async with asyncio.timeout(PATIENCE):
                while sentence not in str((found := await asyncio.to_thread(readyz, mirror))[1]["degraded"]):
                    await asyncio.sleep(0.1)
            assert (found[0], found[1]["status"]) == (200, "degraded" if sentence else "ready")

        async def pulled() -> None:
            _, body = await asyncio.to_thread(get, f"{mirror.url}/v2/library/app/blobs/{image.layers[0]}")
            assert image.layers[0] == Digest.of(body)

        assert (await asyncio.to_thread(readyz, mirror))[1]["status"] == "ready"
        ballast = fill(disk, leave=MIB)
        await told("1 MiB free of 40 MiB, less than the 2 MiB that cache.min_free leaves")
        await until(lambda: "WARNING mirror.disk_probe: the disk of" in mirror.log)
        await pulled()
        assert "cache.min_free" in (await commands.json("stats"))["degraded"][0]
        assert "degraded    the disk of" in await commands("stats")
        doctor = json.loads((await commands.run("doctor", "--json", "--mirror", mirror.url)).stdout)
        assert any(one["level"] == "problem" and "cache.min_free" in one["message"] for one in doctor["findings"]), doctor
        assert "can be written again" not in mirror.log
        fill(disk).rename(disk / "more")
        ballast.touch()
        await told("cannot be written (No space left on device)")
        await pulled()
        await until(lambda: "WARNING mirror.disk_probe: the cache directory" in mirror.log)
        _, page = await asyncio.to_thread(get, f"{mirror.url}/")
        assert b"No space left on device" in page
        (disk / "more").unlink()
        ballast.unlink()
        async with asyncio.timeout(PATIENCE):
            while (await asyncio.to_thread(readyz, mirror))[1]["status"] != "ready":
                await asyncio.sleep(0.1)
        await until(lambda: "can be written again" in mirror.log)
        assert (await commands.json("stats"))["degraded"] == []


async def test_it_starts_on_a_full_disk_and_serves(disk: Path, upstream: Scripted) -> None:
    """As a process: with the token of the dashboard unkept, its first requests answered, and degraded from the first."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB)])
    fill(disk)
    with MirrorProcess(disk, {"docker.io": upstream.url}) as mirror:
        assert readyz(mirror)[1]["status"] == "degraded"
        for path in ("manifests/1", f"blobs/{image.layers[0]}"):
            assert (await asyncio.to_thread(get, f"{mirror.url}/v2/library/app/{path}"))[0] == 200
        assert await asyncio.to_thread(mirror.terminate) == 0


@pytest.mark.parametrize("max_size", ["1TiB", "2MiB"])
async def test_pull_blames_what_it_was(disk: Path, upstream: Scripted, max_size: str) -> None:
    """The disk where its room is short, `cache.max_size` where that is."""
    for name in ("one", "two", "three"):
        upstream.add_image(f"library/{name}", "1", layers=[os.urandom(MIB)])
    if max_size == "1TiB":
        fill(disk, leave=int(measure(disk, 0.05).reserve + 2.5 * MIB))
    done = await Commands(disk, upstream).run("pull", "one:1", "two:1", "three:1", MIRROR_CACHE__MAX_SIZE=max_size)
    assert done.returncode == 1
    if max_size == "1TiB":
        assert f"the disk of {disk} has" in done.stderr
        assert "cache.max_size" not in done.stderr
    else:
        assert "within cache.max_size (2 MiB)" in done.stderr


async def test_a_full_disk_does_not_flood_the_log(disk: Path, upstream: Scripted) -> None:
    """300 images pulled through it: all come, and the log has a few lines and their counts."""
    images = [upstream.add_image(f"library/app{number}", "1", layers=[os.urandom(100)]) for number in range(300)]
    fill(disk)
    with MirrorProcess(disk, {"docker.io": upstream.url}, SERVER__ACCESS_LOG="false") as mirror:
        limit = asyncio.Semaphore(20)

        async def pull(session: aiohttp.ClientSession, number: int) -> None:
            for path in ("manifests/1", f"blobs/{images[number].layers[0]}"):
                async with limit, session.get(f"{mirror.url}/v2/library/app{number}/{path}") as response:
                    assert response.status == 200
                    await response.read()

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(pull(session, number) for number in range(300)))
        assert await asyncio.to_thread(mirror.terminate) == 0
        lines = mirror.log.splitlines()
    assert any("more like this in" in line for line in lines)
    assert len(lines) < 60, "\n".join(lines[:100])
