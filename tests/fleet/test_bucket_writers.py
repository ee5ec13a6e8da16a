"""Which mirror, and which process of it, writes to a bucket: one for each download from outside of the fleet, so that a fleet that lost all disks starts warm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from mirror import wiring
from mirror.bundles.importing import Import, Importer, Wishes
from mirror.bundles.sources import Files
from mirror.config import load
from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from mirror.storage.disk.catalog.schema import FILE
from mirror.upstream.fleet import ranked
from tests.bundles.test_archives import parse
from tests.fleet.test_bucket import MIB, emptied, written
from tests.fleet.test_fleet import of, pull
from tests.fleet.test_places import LIVES
from tests.promises.test_fleet import fetch
from tests.support.archives import layout_of, pack
from tests.support.images import make_image
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.ports import free_port
from tests.support.s3 import S3
from tests.support.scripted import Image, Scripted, Status


@pytest.fixture
async def home() -> Any:
    """Another mirror of the fleet, which is the home of whatever a test needs it for."""
    async with Scripted() as scripted:
        scripted.blob_headers = LIVES
        yield scripted


@pytest.fixture
async def second(start: StartMirror, s3: S3, home: Scripted) -> tuple[Mirror, str]:
    """A mirror of a fleet of two, and its URL."""
    own = f"http://127.0.0.1:{free_port()}"
    settings = {
        "server": {"listen": own.removeprefix("http://")},
        "fleet": {**s3.settings, "mirrors": [own, home.url], "own": own},
    }
    return await start(settings=settings), own


def of_home(upstream: Scripted, urls: tuple[str, str]) -> tuple[Image, str]:
    """An image of the registry, and its tag: they and all blobs belong to the second of the mirrors."""
    tag = next(tag for tag in map(str, range(100)) if ranked(urls, f"docker.io/library/app:{tag}")[0] == urls[1])
    while True:
        image = upstream.add_image("library/app", tag, layers=[os.urandom(1000)])
        if all(ranked(urls, str(digest))[0] == urls[1] for digest in (image.digest, image.config, *image.layers)):
            return image, tag


def waiting(mirror: Mirror) -> int:
    """How much waits to be written."""
    with contextlib.closing(sqlite3.connect(mirror.directory / "catalog" / FILE)) as db:
        [(count,)] = db.execute("SELECT count(*) FROM outbox")
    return int(count)


async def test_who_has_asked_the_registry_writes(second: tuple[Mirror, str], upstream: Scripted, home: Scripted, s3: S3) -> None:
    """Where the home lives, but gives nothing: what came from the registry in its place is in the bucket, its tag too, and each object once."""
    mirror, own = second
    image, tag = of_home(upstream, (own, home.url))
    home.fail("/v2/", Status(500), times=1000)
    home.fail("/v2/", Status(500), times=1000, method="HEAD")
    await pull(mirror, image, tag)
    await written(s3, image, tag)
    await emptied(mirror, image)
    for digest in (image.config, *image.layers):
        assert s3.requests("PUT", digest.hex) == 1
    assert upstream.count("GET") == 3


async def test_who_has_it_of_the_home_leaves_it_to_that(
    second: tuple[Mirror, str], upstream: Scripted, home: Scripted, s3: S3
) -> None:
    """Each download has one that writes: the bucket is not even asked whether it has it."""
    mirror, own = second
    image, _ = of_home(upstream, (own, home.url))
    for digest in (image.config, *image.layers):
        home.add_blob(upstream.blobs[str(digest)])
        assert (await mirror.get(of(digest))).digest() == digest
        await mirror.until_cached(digest)
    await until(lambda: not waiting(mirror))
    assert upstream.asked == []
    for digest in (image.config, *image.layers):
        assert (s3.requests("PUT", digest.hex), s3.requests("HEAD", digest.hex)) == (0, 0)


async def test_what_an_archive_brings_is_written_by_who_imports_it(
    start: StartMirror, s3: S3, home: Scripted, tmp_path: Path
) -> None:
    """Its home has never seen it, and no registry may have it."""
    own = f"http://127.0.0.1:{free_port()}"
    image = next(
        image
        for image in (make_image(seed, size=1000) for seed in range(99))
        if ranked((own, home.url), image.digest)[0] == home.url
    )
    (tmp_path / "archive").write_bytes(pack(layout_of({"docker.io/library/app:1": image})))
    fleet = {**s3.settings, "mirrors": [own, home.url], "own": own}
    settings = load(None, {}, {"cache": {"dir": str(tmp_path / "cache")}, "fleet": fleet})
    async with wiring.store(settings) as store:
        with contextlib.closing(Files([tmp_path / "archive"])) as source, contextlib.closing(Importer(store)) as importer:
            await importer.run(Import(source, Wishes(parse)))
    mirror = await start(settings={"server": {"listen": own.removeprefix("http://")}, "fleet": fleet})
    await until(lambda: s3.tag("library/app", "1") is not None and not waiting(mirror))
    assert s3.manifest(Digest.parse(image.digest)).exists()
    assert all(s3.blob(Digest.parse(digest)).exists() for digest in image.blobs)


async def test_a_tag_is_not_turned_back_by_who_knows_it_from_earlier(
    second: tuple[Mirror, str], upstream: Scripted, home: Scripted, s3: S3
) -> None:
    """What another mirror has written of it is by a later word of the registry."""
    mirror, own = second
    image, tag = of_home(upstream, (own, home.url))
    home.fail("/v2/", Status(500), times=1000)
    home.fail("/v2/", Status(500), times=1000, method="HEAD")
    path = s3.objects / f"tags/docker.io/library/app/{tag}.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        later := json.dumps(
            {"digest": str(Digest.of(b"later")), "mediaType": OCI_MANIFEST, "size": 5, "checked": time.time() + 30}
        )
    )
    # As one that was pulled before the bucket knew of it.
    s3.signal(signal.SIGSTOP)
    await pull(mirror, image, tag)
    s3.signal(signal.SIGCONT)
    await written(s3, image, tag)
    await emptied(mirror, image)
    assert path.read_text() == later


async def test_two_workers_write_once_and_both_read(upstream: Scripted, s3: S3, tmp_path: Path) -> None:
    """One of them writes. Where all are killed while the bucket is down, those that take their places write, each object once; and whichever is asked reads."""
    blobs = [upstream.add_blob(os.urandom(MIB // 8)) for _ in range(8)]
    environment = {"SERVER__WORKERS": "2", "FLEET__BUCKET": "s3://images", "FLEET__BUCKET_ENDPOINT": s3.url}

    async def fetch_all(mirror: MirrorProcess) -> None:
        bodies = await asyncio.gather(*(fetch(mirror.url, blob) for blob in blobs for _ in range(3)))
        assert [Digest.of(body) for body in bodies] == [blob for blob in blobs for _ in range(3)]

    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, **environment) as mirror:
        s3.stop()
        await fetch_all(mirror)
        await until(lambda: all((mirror.directory / "blobs" / "sha256" / blob.hex).exists() for blob in blobs))
        before = mirror.workers
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(set(mirror.workers) - set(before)) == 2)
        s3.start()
        await until(lambda: all(s3.blob(blob).exists() for blob in blobs))
        await until(lambda: mirror.metric("mirror_bucket_waiting") == 0)
        assert [s3.requests("PUT", blob.hex) for blob in blobs] == [1] * len(blobs)
    await upstream.stop()
    with MirrorProcess(tmp_path / "lost", {"docker.io": upstream.url}, **environment) as mirror:
        await fetch_all(mirror)
        assert mirror.metric("mirror_bucket_received_bytes_total") == len(blobs) * MIB // 8
