"""Faults of a bucket that a real S3 server can be made to commit: damaged objects, a full disk, no right to write. No pull fails for any of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.fleet.test_bucket import MIB, degraded, emptied, image_of, written
from tests.fleet.test_fleet import of, pull
from tests.support.mirrors import StartMirror
from tests.support.patience import PATIENCE
from tests.support.programs import require_root
from tests.support.s3 import S3
from tests.support.scripted import Scripted


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


DAMAGES: dict[str, tuple[Callable[[Path], None], float]] = {
    "well": (lambda path: None, 0),
    "gone": (Path.unlink, 1),
    "wrong bytes": (lambda path: _flip(path, MIB // 2), 2),
    "wrong bytes at the end": (lambda path: _flip(path, MIB - 1), 2),
    "shorter": (lambda path: os.truncate(path, MIB - 1000), 1),
    "empty": (lambda path: os.truncate(path, 0), 1),
    "longer": (lambda path: os.truncate(path, MIB + 1), 1),
    "longer than any disk": (lambda path: os.truncate(path, 1 << 42), 1),
}
"""What happens to an object in the bucket, and how often its registry is asked for it then."""


async def test_what_is_damaged_in_a_bucket_comes_from_the_registry(start: StartMirror, upstream: Scripted, s3: S3) -> None:
    """The row of a real bucket in the suite of all places (test_places.py): each layer of an image, whole and by range, with what only a registry of one's own could do to it. What has not the
    size that its manifest says reaches no client at all; of wrong bytes none is believed. All of it is put right."""
    image = image_of(upstream, len(DAMAGES))
    mirror = await start(settings={"fleet": s3.settings})
    await pull(mirror, image)
    await written(s3, image)
    await emptied(mirror, image)
    for layer, (damage, _) in zip(image.layers, DAMAGES.values(), strict=True):
        damage(s3.blob(layer))
    for reads_range in (True, False):
        await mirror.stop()
        shutil.rmtree(mirror.directory)
        mirror = await start(settings={"fleet": s3.settings})
        assert (await mirror.get("/v2/library/app/manifests/1")).body == image.body
        before = {layer: upstream.count("GET", str(layer)) for layer in image.layers}
        for layer, (name, (_, asked)) in zip(image.layers, DAMAGES.items(), strict=True):
            data = upstream.blobs[str(layer)]
            if reads_range and not name.startswith("wrong bytes"):
                got = await mirror.get(of(layer), Range="bytes=1000-1999")
                assert (name, got.status, got.body) == (name, 206, data[1000:2000])
                continue
            got = await mirror.get(of(layer))
            assert not got.cut or name.startswith("wrong bytes"), name
            if got.cut:
                got = await mirror.get(of(layer))
            assert (name, got.status, got.body) == (name, 200, data)
            assert upstream.count("GET", str(layer)) - before[layer] == (asked if reads_range else 0), name
        assert (await mirror.get(of(image.config))).status == 200
        await emptied(mirror, image)
        assert all(s3.blob(layer).stat().st_size == MIB for layer in image.layers)
        assert all(Digest.of(s3.blob(layer).read_bytes()) == layer for layer in image.layers)


async def test_a_tag_of_which_the_bucket_has_no_more_is_asked_of_the_registry(
    start: StartMirror, upstream: Scripted, s3: S3
) -> None:
    """Its manifest may have expired, or be one that nobody has: clients are not sent for it."""
    image = image_of(upstream)
    path = s3.objects / "tags/docker.io/library/app/1.json"
    path.parent.mkdir(parents=True)
    tag = {"digest": str(Digest.of(b"nowhere")), "mediaType": OCI_MANIFEST, "size": 7, "checked": time.time() - 1}
    path.write_text(json.dumps(tag))
    mirror = await start(settings={"fleet": s3.settings})
    await pull(mirror, image)
    assert (upstream.count("HEAD"), upstream.count("GET", "/manifests/")) == (1, 1)
    await written(s3, image)
    await emptied(mirror, image)
    assert json.loads(path.read_text())["digest"] == str(image.digest), "it is put right"


@pytest.fixture
def small(s3: S3) -> Iterator[S3]:
    """A bucket on a disk of 16 MiB."""
    require_root("mounting a small disk")
    s3.stop()
    folder = s3.objects.parent
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    s3.objects.mkdir()
    s3.start()
    yield s3
    s3.stop()
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("fault", ["full", "read-only"])
async def test_a_bucket_that_takes_nothing_is_read_and_written_to_later(
    start: StartMirror, upstream: Scripted, small: S3, fault: str
) -> None:
    """Its disk is full, or the credentials may only read: what cannot be written waits, which /readyz tells, and what it has is read."""
    image, more = image_of(upstream, 2, "1"), image_of(upstream, 2, "2")
    mirror = await start(settings={"fleet": small.settings})
    await pull(mirror, image, "1")
    await written(small, image, "1")
    await emptied(mirror, image)
    await mirror.stop()
    shutil.rmtree(mirror.directory)
    ballast = small.objects.parent / "ballast"
    if fault == "full":
        room = os.statvfs(small.objects)
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize))
    else:
        small.stop()
        small.start("--readonly")
    mirror = await start(settings={"fleet": small.settings})
    asked = len(upstream.asked)
    await pull(mirror, image, "1")
    assert len(upstream.asked) == asked
    await pull(mirror, more, "2")
    async with asyncio.timeout(PATIENCE):
        while not await degraded(mirror):
            await asyncio.sleep(0.02)
    [told] = await degraded(mirror)
    assert "the bucket s3://images does not take what is written to it, which waits: " in told
    assert ("507" if fault == "full" else "403 Forbidden (AccessDenied)") in told
    if fault == "full":
        ballast.unlink()
    else:
        small.stop()
        small.start()
    await written(small, more, "2")
    await emptied(mirror, more)
    assert await degraded(mirror) == []
