"""Keeping within size, and mending after crashes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from mirror.disk_room import measure
from mirror.errors import StorageFull
from mirror.names import Digest, Tag
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.disk.maintenance.expiry import Expiry
from mirror.storage.disk.spool import sweep
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Upkeep
from mirror.storage.store import Gone
from tests.storage.test_conformance import APP, put_image
from tests.support.disks import fill, small_disk
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import patiently
from tests.support.programs import missing, run
from tests.support.scripted import Hold, Length, Scripted

MIB = 1024 * 1024


def path(digest: Digest) -> str:
    return f"/v2/library/app/blobs/{digest}"


async def test_the_least_recently_used_blob_goes_first_and_is_fetched_again(start: StartMirror, upstream: Scripted) -> None:
    """The size is kept; what was read last stays; what went comes back when asked for."""
    mirror: Mirror = await start(max_size="3500KiB")
    blobs = [upstream.add_blob(os.urandom(MIB)) for _ in range(4)]
    for blob in blobs[:3]:
        await mirror.get(path(blob))
        await mirror.until_cached(blob)
        await asyncio.sleep(0.02)
    await mirror.get(path(blobs[0]))
    await mirror.get(path(blobs[3]))
    await mirror.until_cached(blobs[3])
    assert [mirror.cached(blob) for blob in blobs] == [True, False, True, True]
    assert await mirror.metric("mirror_evictions_total") >= 1
    assert (await mirror.get(path(blobs[1]))).digest() == blobs[1]
    assert upstream.count("GET", str(blobs[1])) == 2
    await until(lambda: sum(mirror.cached(blob) for blob in blobs) == 3)


async def test_a_collection_counts_what_it_has_removed_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what another process removes before, between and after its parts: of that, no reason would be true. Both together are everything that went."""
    async with DiskStore(tmp_path, Upkeep(100 * MIB)) as mirror:
        images = [await put_image(mirror, APP, Tag(str(number)), os.urandom(MIB), config=b"%d" % number) for number in range(5)]
        removed = 0

        async def expire(expiry: Expiry) -> Gone:
            nonlocal removed
            removed += (await mirror.delete(APP, images[0].digest)).freed
            return await expired(expiry)

        async def remove(eviction: Eviction, digests: Iterable[Digest]) -> Gone:
            nonlocal removed
            removed += (await mirror.delete(APP, images[1].digest)).freed
            return await orphans(eviction, digests)

        expired, orphans = Expiry.expire, Eviction.remove
        monkeypatch.setattr(Expiry, "expire", expire)
        monkeypatch.setattr(Eviction, "remove", remove)
        async with DiskStore(tmp_path, Upkeep(MIB * 5 // 2)) as other:
            before = (await other.statistics()).size
            done = await other.collect()
            assert (done.expired, done.orphans) == (Gone(0, 0), Gone(0, 0))
            assert done.evicted.size >= MIB
            assert (await other.statistics()).size == before - removed - done.evicted.size


async def test_a_blob_that_is_being_read_stays(start: StartMirror, upstream: Scripted) -> None:
    """Whoever reads it, in this process or another, reads it to the end, and it is still there afterwards."""
    mirror: Mirror = await start(max_size="40MiB")
    read = upstream.add_blob(os.urandom(24 * MIB))
    await mirror.get(path(read))
    await mirror.until_cached(read)
    reader, writer = await mirror.slow_reader(path(read))
    for _ in range(6):
        other = upstream.add_blob(os.urandom(6 * MIB))
        assert (await mirror.get(path(other))).digest() == other
    assert mirror.cached(read)
    assert Digest.of(await reader.readexactly(24 * MIB)) == read
    writer.close()
    await writer.wait_closed()
    # Nobody reads it now, and it is the oldest.
    await mirror.get(path(upstream.add_blob(os.urandom(20 * MIB))))
    await until(lambda: not mirror.cached(read))


async def test_manifests_go_after_the_blobs_they_name(start: StartMirror, upstream: Scripted) -> None:
    """However old: as long as a blob of an image is here, so is its manifest, and the index that names it."""
    mirror: Mirror = await start(max_size="2500KiB")
    image = upstream.add_image("library/app", layers=[os.urandom(MIB)])
    index, _ = upstream.add_index("library/app", "latest", [image])
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(f"/v2/app/manifests/{image.digest}")
    await mirror.get(path(image.layers[0]))
    for _ in range(3):
        blob = upstream.add_blob(os.urandom(MIB))
        await mirror.get(path(blob))
        await mirror.until_cached(blob)
        if mirror.cached(image.layers[0]):
            assert mirror.cached(image.digest)
    assert not mirror.cached(image.layers[0])
    assert mirror.cached(index)
    assert mirror.cached(image.digest)


PATIENT = {"upstream": {"stall_timeout": 60}}
"""A download that stands still stays as it is for the time of a test."""


async def test_downloads_in_progress_count_with_what_they_have(start: StartMirror, upstream: Scripted) -> None:
    """Two that have nearly all of their bytes drive out what is older, before either is finished: together they never overrun the limit."""
    mirror: Mirror = await start(max_size="4MiB", settings=PATIENT)
    old = upstream.add_blob(os.urandom(MIB))
    await mirror.get(path(old))
    await mirror.until_cached(old)
    holds, tasks = [], []
    for _ in range(2):
        blob = upstream.add_blob(os.urandom(2 * MIB - 1000))
        hold = Hold(2 * MIB - 2000)
        upstream.fail(str(blob), hold)
        holds.append(hold)
        tasks.append(asyncio.create_task(mirror.get(path(blob))))
        await hold.reached.wait()
    await until(lambda: not mirror.cached(old))
    for hold in holds:
        hold.release.set()
    assert all(answer.status == 200 and not answer.cut for answer in await asyncio.gather(*tasks))
    assert upstream.count("GET", "blobs") == 3


@pytest.mark.parametrize("joined", [False, True], ids=["one request", "joined by another registry"])
async def test_what_upstream_claims_evicts_nothing(start: StartMirror, upstream: Scripted, joined: bool) -> None:
    """A registry says that a blob fills nine tenths of the cache, and sends one byte of it: all that is cached stays, hot or not, as long as no more comes."""
    async with Scripted() as other:
        mirror: Mirror = await start(
            max_size="10MiB", settings={**PATIENT, "registries": {"evil.example": {"endpoints": [other.url]}}}
        )
        hot = [upstream.add_blob(os.urandom(MIB // 5)) for _ in range(40)]
        for blob in hot:
            await mirror.get(path(blob))
            await mirror.until_cached(blob)
        claimed = other.add_blob(os.urandom(10))
        hold = Hold(after=1)
        other.fail(str(claimed), Length(9 * MIB) & hold)
        reading = [asyncio.create_task(mirror.get(f"/v2/evil.example/any/blobs/{claimed}"))]
        await hold.reached.wait()
        if joined:
            # docker.io does not have it.
            assert (await mirror.get(path(claimed))).status == 404
        # Something that makes room once more, for itself alone.
        small = upstream.add_blob(os.urandom(1000))
        await mirror.get(path(small))
        await mirror.until_cached(small)
        assert [blob for blob in hot if not mirror.cached(blob)] == []
        assert other.count("GET", "blobs") == 1
        reading[0].cancel()
        hold.release.set()


async def test_a_full_disk_never_fails_a_pull(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """On a file system too small, blobs are streamed: those known to be too large, and those whose disk fills up under way."""
    if os.geteuid() != 0:
        missing("mounting a small file system takes root")
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small))
    try:
        mirror: Mirror = await start(directory=small / "cache")
        large = upstream.add_blob(os.urandom(20 * MIB))
        assert (await mirror.get(path(large))).digest() == large
        assert not mirror.cached(large)
        # This one fits, until something else takes the space while it comes.
        blob = upstream.add_blob(os.urandom(10 * MIB))
        hold = Hold(2 * MIB)
        upstream.fail(str(blob), hold)
        tasks = [asyncio.create_task(mirror.get(path(blob))) for _ in range(3)]
        await hold.reached.wait()
        await asyncio.sleep(0.2)
        (small / "other").write_bytes(bytes(9 * MIB))
        hold.release.set()
        assert [answer.digest() for answer in await asyncio.gather(*tasks)] == [blob] * 3
        assert not mirror.cached(blob)
        assert mirror.spooled() == []
        image = upstream.add_image("library/app", "latest")
        (small / "rest").write_bytes(b"")
        with open(small / "rest", "wb", buffering=0) as rest:
            try:
                while True:
                    rest.write(bytes(4096))
            except OSError:
                pass
        assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
        assert (await mirror.get(path(image.layers[0]))).digest() == image.layers[0]
        await mirror.stop()
    finally:
        run("umount", "-l", str(small))


async def test_a_crash_between_file_and_catalog_is_mended_at_the_start(start: StartMirror, upstream: Scripted) -> None:
    """Files without a row are taken in, manifests as manifests; rows without a file, and files cut short, are dropped."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    blobs = [upstream.add_blob(os.urandom(1000)) for _ in range(3)]
    await mirror.get("/v2/app/manifests/latest")
    for blob in blobs:
        await mirror.get(path(blob))
        await mirror.until_cached(blob)
    await mirror.stop()
    folder = mirror.directory / "blobs" / "sha256"
    (folder / blobs[0].hex).unlink()
    (folder / blobs[1].hex).write_bytes(b"short")
    (folder / "not-ours").write_bytes(b"x")
    db = sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")
    with db:
        db.execute("DELETE FROM content WHERE digest IN (?, ?)", (str(image.digest), str(blobs[2])))
    db.close()
    again: Mirror = await start()
    for _ in patiently():
        if await again.metric("mirror_cache_bytes") == 1000 + len(image.body):
            break
        await asyncio.sleep(0.02)
    assert await again.metric("mirror_cache_bytes") == 1000 + len(image.body)
    assert await again.metric("mirror_cache_blobs") == 2
    assert not again.cached(blobs[1])
    before = len(upstream.asked)
    assert (await again.get(f"/v2/app/manifests/{image.digest}")).cache == "mirror; hit"
    assert (await again.get(path(blobs[2]))).cache == "mirror; hit"
    assert len(upstream.asked) == before
    assert (await again.get(path(blobs[0]))).digest() == blobs[0]
    assert (await again.get(path(blobs[1]))).digest() == blobs[1]


@pytest.mark.parametrize("damage", ["catalog", "wal", "missing"])
async def test_a_catalog_that_cannot_be_read_is_made_anew(start: StartMirror, upstream: Scripted, damage: str) -> None:
    """What is on the disk is served all the same."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    await mirror.stop()
    catalog = mirror.directory / "catalog" / "content.sqlite"
    if damage == "missing":
        catalog.unlink()
    else:
        catalog.with_name(catalog.name + ("-wal" if damage == "wal" else "")).write_bytes(os.urandom(8192))
    again: Mirror = await start()
    before = len(upstream.asked)
    assert (await again.get(path(image.layers[0]))).cache == "mirror; hit"
    assert (await again.get(f"/v2/app/manifests/{image.digest}")).body == image.body
    assert len(upstream.asked) == before


async def test_a_damaged_manifest_on_disk_is_fetched_again(start: StartMirror, upstream: Scripted) -> None:
    """A cached manifest is verified when it is read."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    await mirror.get("/v2/app/manifests/latest")
    await mirror.stop()
    file = mirror.directory / "blobs" / "sha256" / image.digest.hex
    file.write_bytes(file.read_bytes().replace(b"amd64", b"arm64").replace(b"2", b"3"))
    again: Mirror = await start()
    assert (await again.get("/v2/app/manifests/latest")).body == image.body
    assert upstream.count("GET", "manifests") == 2


def test_the_spool_is_swept_at_the_start(tmp_path: Path) -> None:
    """Old journals without bytes, parts that nobody has touched for a week, and what was half written to the blobs go; what is recent stays."""
    store = BlobStore(tmp_path)
    for name in ("sha256-aa.have", "sha256-bb.part", "sha256-bb.have", "sha256-cc.part", "sha256-cc.have", "sha256-dd.have"):
        (store.spool / name).write_bytes(b"x")
    os.utime(store.spool / "sha256-bb.part", (0, 0))
    blobs = tmp_path / "blobs" / "sha256"
    for name in (".writing-old", ".writing-new", "a" * 64):
        (blobs / name).write_bytes(b"x")
    for name in ("sha256-aa.have", "sha256-bb.have"):
        os.utime(store.spool / name, (0, 0))
    for name in (".writing-old", "a" * 64):
        os.utime(blobs / name, (0, 0))
    sweep(store)
    assert sorted(os.listdir(blobs)) == [".writing-new", "a" * 64]
    assert sorted(os.listdir(store.spool)) == ["sha256-cc.have", "sha256-cc.part", "sha256-dd.have"]


async def test_the_row_of_what_is_evicted_is_deleted_once(tmp_path: Path) -> None:
    """By its owner alone: not by the policy's queues as well."""
    statements: list[str] = []
    async with DiskStore(tmp_path, Upkeep(100_000)) as store:
        await store._catalog.do(lambda catalog: catalog._db.set_trace_callback(statements.append))
        for number in range(3):
            partial = store.partial(Digest.of(data := bytes([number]) * 40_000))
            assert partial.lead()
            await partial.set_size(len(data))
            await partial.write(0, data)
            await partial.commit()
            partial.close()
        assert len(await store.contents()) == 2
    # SQLite reports a statement once more for each trigger that it fires.
    different = [statement for statement, _ in itertools.groupby(statements)]
    assert len([statement for statement in different if statement.startswith("DELETE FROM content")]) == 1


async def test_what_downloads_were_granted_is_not_granted_again(tmp_path: Path) -> None:
    """Though the file system still has it free, as they have not written it yet: with room for 320 KiB, of ten downloads of 64 KiB each about five begin."""
    with small_disk(tmp_path / "small", "40m") as small:
        async with DiskStore(small, Upkeep(2**40)) as store:
            partials = [store.partial(Digest.of(bytes([number]))) for number in range(10)]
            for partial in partials:
                assert partial.lead()
                await partial.set_size(600_000)
            fill(small, leave=measure(small, Upkeep(2**40).min_free).reserve + 320 * 1024)
            begun = 0
            for partial in partials:
                with contextlib.suppress(StorageFull):
                    await partial.write(0, b"x")
                    begun += 1
            assert 3 <= begun <= 5
            for partial in partials:
                partial.close()
