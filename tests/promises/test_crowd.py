"""Many clients, several processes, and processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from pathlib import Path

import aiohttp

from mirror.names import Digest
from tests.support.mirrors import MirrorProcess, noted, until
from tests.support.scripted import Hold, Image, Scripted

MIB = 1024 * 1024


def address(mirror: MirrorProcess, digest: Digest) -> str:
    return f"{mirror.url}/v2/library/app/blobs/{digest}"


async def fetch(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as response:
        assert response.status == 200
        return await response.read()


async def test_a_hundred_clients_on_one_cold_image(upstream: Scripted, tmp_path: Path) -> None:
    """Some leave, some are slow; everybody who stays gets every byte, and upstream sees each blob exactly once."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(6 * MIB), os.urandom(MIB)])
    chance = random.Random(1)

    async def client(number: int, mirror: MirrorProcess) -> None:
        await asyncio.sleep(chance.random() * 0.3)
        async with aiohttp.ClientSession() as session:
            manifest = await fetch(session, f"{mirror.url}/v2/app/manifests/latest")
            assert manifest == image.body
            for digest in (image.config, *image.layers):
                async with session.get(address(mirror, digest)) as response:
                    if number % 5 == 0:
                        await response.content.read(1000)
                        response.close()
                        continue
                    hasher = hashlib.sha256()
                    while data := await response.content.read(256 * 1024):
                        hasher.update(data)
                        if number % 7 == 0:
                            await asyncio.sleep(0.02)
                    assert hasher.hexdigest() == digest.hex

    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        await asyncio.gather(*(client(number, mirror) for number in range(100)))
        assert mirror.terminate() == 0
    for digest in (image.config, *image.layers):
        assert upstream.count("GET", str(digest)) == 1
        assert upstream.sent[str(digest)] == len(upstream.blobs[str(digest)])
    assert upstream.count("GET", "/manifests/") == 1


async def test_two_processes_on_one_directory(upstream: Scripted, tmp_path: Path) -> None:
    """Both are asked for the same cold blob at once: upstream sees it once, and both give every byte."""
    data = os.urandom(8 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    with (
        MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as one,
        MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as two,
    ):
        async with aiohttp.ClientSession() as session:
            tasks = [asyncio.create_task(fetch(session, address(mirror, blob))) for mirror in (one, two) * 5]
            await hold.reached.wait()
            await asyncio.sleep(0.3)
            hold.release.set()
            assert all(body == data for body in await asyncio.gather(*tasks))
        assert upstream.count("GET", str(blob)) == 1
        assert (one.terminate(), two.terminate()) == (0, 0)
    assert os.listdir(tmp_path / "cache" / "spool") == []


async def test_the_other_process_takes_over_when_the_leader_is_killed(upstream: Scripted, tmp_path: Path) -> None:
    """``kill -9`` of the process that downloads: the kernel drops its lease, the follower resumes, its clients notice nothing."""
    data = os.urandom(8 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(3 * MIB)
    upstream.fail(str(blob), hold)
    with (
        MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as one,
        MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as two,
    ):
        async with aiohttp.ClientSession() as session:
            first = asyncio.create_task(fetch(session, address(one, blob)))
            await hold.reached.wait()
            await until(lambda: noted(tmp_path / "cache", blob) == 3 * MIB)
            follows = asyncio.Event()

            async def follow() -> bytes:
                async with session.get(address(two, blob)) as response:
                    first = await response.content.readexactly(MIB)
                    follows.set()
                    return first + await response.read()

            second = asyncio.create_task(follow())
            await follows.wait()
            one.kill()
            assert await second == data
            with contextlib.suppress(aiohttp.ClientError):
                await first
        assert upstream.count("GET", str(blob)) == 2
        assert upstream.asked[-1].range == f"bytes={3 * MIB}-{len(data) - 1}"
    hold.release.set()


async def test_kill_9_at_random_moments(upstream: Scripted, tmp_path: Path) -> None:
    """Twenty times: killed in the middle of a cold pull, restarted, pulled again. Never a wrong byte, nothing left in the spool, and
    what was fetched and written down before a crash is not fetched again."""
    chance = random.Random(7)
    mirror = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url})
    with mirror:
        for _ in range(20):
            image = upstream.add_image("library/app", "latest", layers=[chance.randbytes(6 * MIB)])
            layer = image.layers[0]
            hold = Hold(chance.randrange(6 * MIB))
            upstream.fail(str(layer), hold)
            async with aiohttp.ClientSession() as session:
                pull = asyncio.create_task(_pull(session, mirror, image))
                await hold.reached.wait()
                await asyncio.sleep(chance.random() * 0.1)
                mirror.kill()
                with contextlib.suppress(aiohttp.ClientError, AssertionError):
                    await pull
            hold.release.set()
            kept = noted(tmp_path / "cache", layer)
            mirror.start()
            async with aiohttp.ClientSession() as session:
                assert await _pull(session, mirror, image) == [upstream.blobs[str(d)] for d in (image.config, layer)]
            resumed = next(asked.range for asked in reversed(upstream.asked) if str(layer) in asked.path)
            if kept:
                assert resumed == f"bytes={kept}-{6 * MIB - 1}"
        await until(lambda: os.listdir(tmp_path / "cache" / "spool") == [])
        assert mirror.terminate() == 0


async def test_two_processes_of_which_one_is_killed_at_random(upstream: Scripted, tmp_path: Path) -> None:
    """Again and again, whichever of them downloads at the time: clients of the other notice nothing, nobody has a complete wrong blob, what was there is not
    fetched again, and the spool is empty in the end."""
    chance = random.Random(11)
    upstreams: dict[str, str | list[str]] = {"docker.io": upstream.url}
    upstream.rate = 20 * MIB
    blobs = []
    with MirrorProcess(tmp_path / "cache", upstreams) as one, MirrorProcess(tmp_path / "cache", upstreams) as two:

        async def client(mirror: MirrorProcess, blob: Digest, after: float) -> bytes | None:
            await asyncio.sleep(after)
            async with aiohttp.ClientSession() as session:
                try:
                    return await fetch(session, address(mirror, blob))
                except aiohttp.ClientError:
                    return None

        for _ in range(12):
            blobs.append(blob := upstream.add_blob(chance.randbytes(6 * MIB)))
            victim, other = chance.sample((one, two), 2)
            asking = {asyncio.create_task(client(mirror, blob, chance.random() * 0.2)): mirror for mirror in (victim, other) * 3}
            await asyncio.sleep(chance.random() * 0.4)
            victim.kill()
            for task, mirror in asking.items():
                body = await task
                assert body == upstream.blobs[str(blob)] or (body is None and mirror is victim)
            assert upstream.count("GET", str(blob)) <= 2
            # What was on its way when it was killed is lost, no more.
            assert upstream.sent[str(blob)] <= 6 * MIB + 4 * MIB
            await asyncio.to_thread(victim.start)
        await until(lambda: os.listdir(tmp_path / "cache" / "spool") == [])
        for blob in blobs:
            assert Digest.of((tmp_path / "cache" / "blobs" / "sha256" / blob.hex).read_bytes()) == blob
        assert (one.terminate(), two.terminate()) == (0, 0)
    assert "Traceback" not in one.log + two.log


async def test_kill_9_at_the_very_end(upstream: Scripted, tmp_path: Path) -> None:
    """Around the moments of verification and renaming as well: whatever is there afterwards is whole, and the catalog agrees with it."""
    chance = random.Random(9)
    mirror = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url})
    images = []
    with mirror:
        for _ in range(15):
            images.append(image := upstream.add_image("library/app", "latest", layers=[chance.randbytes(300_000)]))
            async with aiohttp.ClientSession() as session:
                pull = asyncio.create_task(_pull(session, mirror, image))
                await asyncio.sleep(chance.random() * 0.08)
                mirror.kill()
                with contextlib.suppress(aiohttp.ClientError, AssertionError):
                    await pull
            for path in (tmp_path / "cache" / "blobs" / "sha256").iterdir():
                if not path.name.startswith("."):
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            mirror.start()
            async with aiohttp.ClientSession() as session:
                assert await _pull(session, mirror, image) == [upstream.blobs[str(d)] for d in (image.config, image.layers[0])]
        # The next kill may have come between an image's last byte and its new name: what is left lies there until somebody asks again.
        async with aiohttp.ClientSession() as session:
            for image in images:
                await _pull(session, mirror, image)
        await until(lambda: os.listdir(tmp_path / "cache" / "spool") == [])
        names = [name for name in os.listdir(tmp_path / "cache" / "blobs" / "sha256") if not name.startswith(".")]
        await until(lambda: mirror.metric("mirror_cache_blobs") == len(names))
        assert mirror.terminate() == 0


async def _pull(session: aiohttp.ClientSession, mirror: MirrorProcess, image: Image) -> list[bytes]:
    assert await fetch(session, f"{mirror.url}/v2/app/manifests/{image.digest}") == image.body
    return [await fetch(session, address(mirror, digest)) for digest in (image.config, *image.layers)]
