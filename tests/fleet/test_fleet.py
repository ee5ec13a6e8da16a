"""A fleet of equal mirrors: each content is fetched from its registry once, by its home."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mirror.names import Digest
from tests.support.members import StartMembers, directory
from tests.support.mirrors import Mirror, StartMirror
from tests.support.ports import free_port
from tests.support.scripted import Image, Scripted

MIB = 1024 * 1024


def of(blob: Digest) -> str:
    return f"/v2/library/app/blobs/{blob}"


async def pull(mirror: Mirror, image: Image, tag: str = "1") -> int:
    """As a client does. Returns the bytes of its content."""
    head = await mirror.head(f"/v2/library/app/manifests/{tag}")
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.get(f"/v2/library/app/manifests/{image.digest}")).body == image.body
    blobs = await asyncio.gather(*(mirror.get(of(digest)) for digest in (image.config, *image.layers)))
    for digest, got in zip((image.config, *image.layers), blobs, strict=True):
        assert (got.status, got.digest()) == (200, digest)
    return sum(len(got.body) for got in blobs)


@pytest.mark.parametrize("prefetch", [False, True])
async def test_thirty_clients_of_three_mirrors_cost_upstream_what_one_costs(
    members: StartMembers, upstream: Scripted, prefetch: bool
) -> None:
    """The tag is asked for by one HEAD, and each manifest and blob by one GET, whichever mirror the clients ask."""
    fleet = await members(prefetch=prefetch)
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB) for _ in range(4)])
    mirrors = list(fleet.mirrors.values())
    sizes = await asyncio.gather(*(pull(mirrors[number % 3], image) for number in range(30)))
    assert sum(upstream.sent.get(str(digest), 0) for digest in (image.config, *image.layers)) == sizes[0]
    assert upstream.count("HEAD") == 1
    for digest in (image.digest, image.config, *image.layers):
        assert upstream.count("GET", str(digest)) == 1


async def test_a_fleet_that_grows_and_shrinks_serves_all_the_time(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """From two mirrors to five and back, one after the other, so that for some time their lists differ: all pulls succeed, and what a mirror has it keeps."""
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(5)]
    images = [
        upstream.add_image("library/app", str(number), layers=[os.urandom(50_000) for _ in range(3)]) for number in range(3)
    ]
    running: dict[str, Mirror] = {}

    async def run(url: str, listed: list[str]) -> None:
        if (before := running.pop(url, None)) is not None:
            await before.stop()
        settings = {"server": {"listen": url.removeprefix("http://")}, "fleet": {"mirrors": listed, "own": url}}
        running[url] = await start(directory(tmp_path, url), settings=settings)

    async def pull_all() -> None:
        for mirror in list(running.values()):
            await asyncio.gather(*(pull(mirror, image, str(number)) for number, image in enumerate(images)))

    for url in urls[:2]:
        await run(url, urls[:2])
    await pull_all()
    assert all(upstream.count("GET", str(layer)) == 1 for image in images for layer in image.layers)
    for url in urls:
        await run(url, urls)
        await pull_all()
    assert all(upstream.count("GET", str(layer)) <= 4 for image in images for layer in image.layers), (
        "once more by each new mirror"
    )
    asked = upstream.count("GET", "/blobs/")
    for url in urls[2:]:
        await running.pop(url).stop()
    for url in urls[:2]:
        await run(url, urls[:2])
    await pull_all()
    assert upstream.count("GET", "/blobs/") == asked


async def test_a_fleet_below_a_fleet(start: StartMirror, members: StartMembers, upstream: Scripted, tmp_path: Path) -> None:
    """The home of a branch asks the home of headquarters, and that the registry: once, for all clients of all four mirrors."""
    above = await members(2)
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    below = [
        await start(
            directory(tmp_path, url),
            settings={
                "server": {"listen": url.removeprefix("http://")},
                "fleet": {"mirrors": urls, "own": url, "parents": list(above.mirrors)},
            },
        )
        for url in urls
    ]
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB) for _ in range(4)])
    await asyncio.gather(*(pull(mirror, image) for mirror in (*below, *above.mirrors.values()) for _ in range(3)))
    for digest in (image.digest, image.config, *image.layers):
        assert upstream.count("GET", str(digest)) == 1
    assert upstream.count("HEAD") == 1


async def test_lists_are_asked_for_by_each_mirror_once(members: StartMembers, upstream: Scripted) -> None:
    """Of tags and of referrers, however many clients want them: no other mirror is asked, as docs/scale.md says."""
    mirrors = list((await members()).mirrors.values())
    image = upstream.add_image("library/app", "1")
    for path in ("/v2/library/app/tags/list", f"/v2/library/app/referrers/{image.digest}"):
        answers = await asyncio.gather(*(mirror.get(path) for mirror in mirrors * 10))
        assert {(got.status, got.body) for got in answers} == {(200, answers[0].body)}
        assert upstream.count("GET", path) == 3
