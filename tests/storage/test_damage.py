"""A cache directory that has suffered: from a failing disk, from people who tidied up, from a clock that was set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import sqlite3
import stat
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror import durable
from mirror.cache.negative import Negative
from mirror.cache.tags import Tags
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.content import Content
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import patiently
from tests.support.scripted import Hold, Scripted, Status

LATEST = "/v2/app/manifests/latest"
MIB = 1024 * 1024


def path(digest: Digest) -> str:
    return f"/v2/library/app/blobs/{digest}"


def file(mirror: Mirror, digest: Digest) -> Path:
    return mirror.directory / "blobs" / digest.algorithm / digest.hex


@pytest.mark.parametrize("size", [100, 8 * MIB])
async def test_a_folder_where_a_blob_should_be(start: StartMirror, upstream: Scripted, size: int) -> None:
    """It is no blob: what was asked for comes from upstream, at once and after a restart."""
    blob = upstream.add_blob(data := os.urandom(size))
    mirror: Mirror = await start()
    file(mirror, blob).mkdir()
    (file(mirror, blob) / "x").write_bytes(b"x")
    spool = mirror.directory / "spool"
    for _ in range(2):
        for _ in range(2):
            head, got = await mirror.head(path(blob)), await mirror.get(path(blob))
            assert (head.status, head.headers["Content-Length"], got.body) == (200, str(size), data)
        await until(lambda: os.listdir(spool) == [])
        await mirror.stop()
        mirror = await start()
    assert await mirror.metric("mirror_cache_blobs") == 0


async def test_folders_where_a_download_should_be(mirror: Mirror, upstream: Scripted) -> None:
    """It is passed through, as with a full disk."""
    blob = upstream.add_blob(data := os.urandom(MIB))
    for name in (f"sha256-{blob.hex}.part", f"sha256-{blob.hex}.have"):
        (mirror.directory / "spool" / name).mkdir()
        got = await mirror.get(path(blob))
        assert (got.body, got.cache) == (data, "mirror; fwd=miss; detail=not-stored")
        (mirror.directory / "spool" / name).rmdir()
    assert (await mirror.get(path(blob))).cache == "mirror; fwd=miss; stored"


def make_special(what: str, name: Path, elsewhere: Path) -> None:
    """Puts something that is no regular file under a name."""
    match what:
        case "link":
            name.symlink_to(elsewhere)
        case "dangling link":
            name.symlink_to(elsewhere.with_name("nowhere"))
        case "fifo":
            os.mkfifo(name)
        case "socket":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
                one.bind(os.path.relpath(name))
        case "device":
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 5))


@pytest.mark.parametrize("what", ["link", "dangling link", "fifo", "socket", "device"])
async def test_what_is_no_file_under_a_blobs_name(
    mirror: Mirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nothing is read through it and nothing waits for it: the blob is fetched once and takes its place; what a link points to is left alone."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"not the mirror's")
    monkeypatch.chdir(mirror.directory)
    blob = upstream.add_blob(data := os.urandom(MIB))
    make_special(what, file(mirror, blob), elsewhere)
    assert (await mirror.head(path(blob))).headers["Content-Length"] == str(MIB)
    got = await mirror.get(path(blob))
    assert (got.body, got.cache) == (data, "mirror; fwd=miss; stored")
    await mirror.until_cached(blob)
    await until(lambda: file(mirror, blob).lstat().st_mode & 0o170777 == stat.S_IFREG | 0o600)
    assert (await mirror.get(path(blob))).cache == "mirror; hit"
    assert upstream.count("GET", str(blob)) == 1
    assert elsewhere.read_bytes() == b"not the mirror's"


@pytest.mark.parametrize("what", ["link", "fifo", "socket", "device"])
@pytest.mark.parametrize("suffix", ["part", "have"])
async def test_what_is_no_file_under_a_downloads_name(
    mirror: Mirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, suffix: str
) -> None:
    """The blob is passed through, and nothing is written into what is there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"not the mirror's")
    monkeypatch.chdir(mirror.directory)
    blob = upstream.add_blob(data := os.urandom(MIB))
    await mirror.mended()
    make_special(what, mirror.directory / "spool" / f"sha256-{blob.hex}.{suffix}", elsewhere)
    got = await mirror.get(path(blob))
    assert (got.body, got.cache) == (data, "mirror; fwd=miss; detail=not-stored")
    assert elsewhere.read_bytes() == b"not the mirror's"


async def test_nobody_else_can_enter_the_cache(start: StartMirror, upstream: Scripted) -> None:
    """Neither read what is kept nor hold its locks: folders and files are their owner's alone, those of an older mirror as well."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    for name in ("blobs", "spool", "catalog"):
        (mirror.directory / name).chmod(0o755)
    await mirror.stop()
    mirror = await start()
    await mirror.get(LATEST)
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    for name in ("blobs", "blobs/sha256", "spool", "catalog"):
        assert (mirror.directory / name).stat().st_mode & 0o777 == 0o700, name
    for digest in (image.digest, image.layers[0]):
        assert file(mirror, digest).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["documents", "document", "page"])
async def test_a_catalog_that_is_damaged_within(start: StartMirror, upstream: Scripted, what: str) -> None:
    """Served all the same, and mended by the second start at the latest."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    for one in (LATEST, path(image.layers[0]), "/v2/app/tags/list"):
        await mirror.get(one)
    await mirror.until_cached(image.layers[0])
    await mirror.stop()
    catalog = mirror.directory / "catalog"
    match what:
        case "page":
            database = catalog / "content.sqlite"
            database.write_bytes(database.read_bytes()[:4096] + random.Random(1).randbytes(database.stat().st_size - 4096))
        case "documents":
            (catalog / "documents" / "cache.db").write_bytes(random.Random(1).randbytes(8192))
        case "document":
            with contextlib.closing(sqlite3.connect(catalog / "documents" / "cache.db")) as db, db:
                assert db.execute("UPDATE Cache SET value = ?", (b"rot",)).rowcount == 1
    for _ in range(2):
        mirror = await start()
        for one in (LATEST, path(image.layers[0]), "/v2/app/tags/list"):
            assert (await mirror.get(one)).status == 200
        if what == "page":
            await until(lambda: list(catalog.glob("*.damaged")) + list(catalog.glob("*.unreadable")))
        await mirror.stop()
    mirror = await start()
    for one in (LATEST, path(image.layers[0]), "/v2/app/tags/list"):
        await mirror.get(one)
        assert (await mirror.get(one)).cache == "mirror; hit"
    await until_counted(mirror, 2)
    assert list(catalog.glob("*.damaged")) == []


async def test_a_damaged_catalog_that_another_process_uses_is_left_to_it(start: StartMirror, upstream: Scripted) -> None:
    """What two processes write, they write into the same catalog: it is made anew when the first of them starts again, not when a second one does."""
    image = upstream.add_image("library/app", "latest")
    first: Mirror = await start()
    await first.get(LATEST)
    catalog = first.directory / "catalog"
    (catalog / "content.damaged").touch()
    second: Mirror = await start()
    assert (await second.get(LATEST)).cache == "mirror; hit"
    assert list(catalog.glob("*.unreadable")) == []
    await first.stop()
    await second.stop()
    third: Mirror = await start()
    assert list(catalog.glob("*.unreadable")) != []
    assert (await third.get(LATEST)).body == image.body


@pytest.mark.parametrize("seed", range(12))
async def test_a_spool_that_is_rubbish(start: StartMirror, upstream: Scripted, seed: int) -> None:
    """Whatever lies there under a blob's name, journal and bytes: the client gets the right blob or a cut one, the cache the right one."""
    chance = random.Random(seed)
    blob = upstream.add_blob(data := chance.randbytes(chance.choice([0, 1, 100_000, 3 * MIB])))
    mirror: Mirror = await start()
    await mirror.stop()
    base = mirror.directory / "spool" / f"sha256-{blob.hex}"
    base.with_suffix(".part").write_bytes(chance.choice([b"", data[:50_000], chance.randbytes(len(data) + 10), data]))
    extent = base.with_suffix(".part").stat().st_size
    magic = int.from_bytes(b"mirror-1", "little")
    unknown = 2**64 - 1
    records = [
        (magic, chance.choice([len(data), len(data) + 5, 0, unknown, 2**62])),
        (0, extent),
        (5, 2),
        (unknown, unknown),
        (unknown, 0),
    ]
    records = [records[0], *chance.sample(records, chance.randrange(len(records)))]
    journal = b"".join(struct.pack("<QQ", *record) for record in records)
    base.with_suffix(".have").write_bytes(chance.choice([journal, journal + b"torn", chance.randbytes(100), b""]))
    mirror = await start()
    got = await mirror.get(path(blob))
    assert (got.status == 200 and got.body == data) or got.cut or got.status == 503
    for _ in range(50):
        if (got := await mirror.get(path(blob))).status == 200 and not got.cut:
            break
    assert got.body == data
    await mirror.until_cached(blob)
    await until(lambda: mirror.spooled() == [])


async def test_a_spool_full_of_others(start: StartMirror, upstream: Scripted) -> None:
    """Thousands of downloads left behind hold up nothing, and count."""
    mirror: Mirror = await start(max_size="100MiB")
    await mirror.stop()
    for number in range(5000):
        name = mirror.directory / "spool" / f"sha256-{number:064x}"
        name.with_suffix(".part").write_bytes(b"x")
        name.with_suffix(".have").write_bytes(b"x")
    mirror = await start(max_size="100MiB")
    for _ in range(5):
        blob = upstream.add_blob(os.urandom(1000))
        assert (await mirror.get(path(blob))).digest() == blob
        await mirror.until_cached(blob)


async def test_a_clock_that_is_set_back(start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag does not stay as it was until the old time comes round again: neither one that was fresh, nor one whose check had failed."""
    now = time.time()
    monkeypatch.setattr("mirror.cache.cache.Tags", partial(Tags, clock=lambda: now))
    upstream.add_image("library/app", "latest")
    upstream.add_image("library/other", "latest")
    mirror: Mirror = await start(tag_ttl="300ms")
    for name in ("app", "other"):
        await mirror.get(f"/v2/{name}/manifests/latest")
    now += 1
    for method in ("HEAD", "GET"):
        upstream.fail("latest", Status(503), times=50, method=method)
    assert "fwd=stale; detail=upstream" in (await mirror.get(LATEST)).cache
    upstream.heal()
    now -= 365 * 86400
    await asyncio.sleep(0.4)
    moved = {name: upstream.add_image(f"library/{name}", "latest") for name in ("app", "other")}
    for name, image in moved.items():
        for _ in patiently():
            got = await mirror.get(f"/v2/{name}/manifests/latest")
            if got.body == image.body:
                break
            await asyncio.sleep(0.1)
        assert got.body == image.body


def overwrite(mirror: Mirror, digest: Digest, *, like_rot: bool) -> None:
    """Another first byte, in place; `like_rot` leaves the file's times as they were, as a failing disk does."""
    path = file(mirror, digest)
    state = path.stat()
    with open(path, "r+b") as opened:
        first = opened.read(1)[0]
        opened.seek(0)
        opened.write(bytes([first ^ 1]))
    if like_rot:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("size", [100, 8 * MIB])
async def test_a_blob_that_somebody_wrote_to_is_given_to_nobody(start: StartMirror, upstream: Scripted, size: int) -> None:
    """Not even once, however many ask: it is fetched again, once. With upstream gone it is an error, and no wrong byte."""
    blob, other = (upstream.add_blob(os.urandom(size)) for _ in range(2))
    mirror: Mirror = await start()
    for digest in (blob, other):
        await mirror.get(path(digest))
        await mirror.until_cached(digest)
        overwrite(mirror, digest, like_rot=False)
    damaged = await mirror.metric("mirror_scrub_damaged_total")
    answers = await asyncio.gather(*(mirror.get(path(blob)) for _ in range(8)))
    assert {(got.status, got.digest()) for got in answers} == {(200, blob)}
    assert upstream.count("GET", blob.hex) == 2
    assert await mirror.metric("mirror_scrub_damaged_total") == damaged + 1
    await mirror.until_cached(blob)
    assert (await mirror.get(path(blob))).cache == "mirror; hit"
    upstream.fail(other.hex, Status(503), times=50)
    assert (await mirror.get(path(other))).status == 503
    assert not mirror.cached(other)


async def test_a_cache_that_was_copied_is_verified_as_it_is_used(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """Once a blob; what came over whole is a hit at once, and upstream is asked for what did not."""
    whole, hurt = upstream.add_blob(os.urandom(MIB)), upstream.add_blob(os.urandom(MIB))
    mirror: Mirror = await start()
    for digest in (whole, hurt):
        await mirror.get(path(digest))
        await mirror.until_cached(digest)
    await mirror.stop()
    shutil.copytree(mirror.directory, tmp_path / "copy", copy_function=shutil.copyfile)
    again: Mirror = await start(tmp_path / "copy")
    overwrite(again, hurt, like_rot=True)
    for digest, asked in ((whole, 1), (hurt, 2)):
        for _ in range(2):
            assert (await again.get(path(digest))).digest() == digest
            await again.until_cached(digest)
        assert upstream.count("GET", digest.hex) == asked


@pytest.mark.parametrize("size", [100, 8 * MIB])
async def test_a_client_that_asks_again_has_rot_found_out(start: StartMirror, upstream: Scripted, size: int) -> None:
    """Nothing shows that a disk has rotted but a client that fails and comes again: the blob is verified behind it, removed, and fetched anew for the next
    request. A part of a blob, or another client, is no sign of that."""
    blob = upstream.add_blob(os.urandom(size))
    mirror: Mirror = await start()
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    overwrite(mirror, blob, like_rot=True)
    for _ in range(2):
        assert (await mirror.get(path(blob), Range="bytes=0-9")).status == 206
    assert (await mirror.get(path(blob))).digest() != blob
    async with aiohttp.ClientSession(mirror.url, connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))) as another:
        assert Digest.of(await (await another.get(path(blob))).read()) != blob
    assert mirror.cached(blob)
    await mirror.get(path(blob))
    await until(lambda: not mirror.cached(blob))
    assert upstream.count("GET", blob.hex) == 1
    assert (await mirror.get(path(blob))).digest() == blob
    assert upstream.count("GET", blob.hex) == 2
    await mirror.until_cached(blob)
    assert (await mirror.get(path(blob))).cache == "mirror; hit"


class SlowEnd:
    """Holds up the first download after its file has got its final name, until `release`; `reached` is set meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        self.reached, self._released = threading.Event(), threading.Event()
        committed = Content.committed

        def sync_folder(folder: Path) -> None:
            if folder.name == "sha256" and not self.reached.is_set():
                self.reached.set()
                assert self._released.wait(60)

        async def commit(content: Content, digest: Digest, size: int) -> None:
            if not self.reached.is_set():
                self.reached.set()
                await until(self._released.is_set)
            await committed(content, digest, size)

        if where == "sync of the folder":
            monkeypatch.setattr(durable, "sync_folder", sync_folder)
        else:
            monkeypatch.setattr(Content, "committed", commit)

    def release(self) -> None:
        self._released.set()


@pytest.mark.parametrize("size", [100, 8 * MIB])
@pytest.mark.parametrize("where", ["sync of the folder", "row of the catalog"])
async def test_rot_that_is_found_before_a_slow_disk_has_ended_the_download(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, size: int, where: str
) -> None:
    """The file is removed, and no later client gets it from the descriptor that the download still has open: the blob is fetched again, once.

    The first download does not clear away what belongs to the second when it ends.
    """
    end = SlowEnd(monkeypatch, where)
    blob = upstream.add_blob(os.urandom(size))
    # What is held up is not asked for once more, however slow this machine is.
    mirror: Mirror = await start(settings={"upstream": {"stall_timeout": 60}})
    hold = Hold(size // 2)
    try:
        assert (await mirror.get(path(blob))).digest() == blob
        await until(end.reached.is_set)
        overwrite(mirror, blob, like_rot=True)
        for _ in range(2):
            got = await mirror.get(path(blob))
            assert (got.cache, got.digest() == blob) == ("mirror; hit", False)
        await until(lambda: not mirror.cached(blob))
        assert (await mirror.head(path(blob))).headers["Content-Length"] == str(size)
        upstream.fail(blob.hex, hold)
        asking = [asyncio.create_task(mirror.get(path(blob))) for _ in range(3)]
        await asyncio.wait([asyncio.create_task(hold.reached.wait()), *asking], return_when=asyncio.FIRST_COMPLETED)
        end.release()
        await until_counted(mirror, 1)
        assert f"sha256-{blob.hex}.have" in mirror.spooled()
    finally:
        end.release()
        hold.release.set()
    for got in await asyncio.gather(*asking):
        assert (got.status, got.cut, got.digest()) == (200, False, blob)
    assert upstream.count("GET", blob.hex) == 2
    await mirror.until_cached(blob)
    await until(lambda: mirror.spooled() == [])
    assert (await mirror.get(path(blob))).cache == "mirror; hit"
    await until_counted(mirror, 1)


@pytest.mark.parametrize("where", ["sync of the folder", "row of the catalog"])
async def test_a_client_that_found_nothing_just_before_a_download_was_finished(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It gets the finished file, whether or not the end of the download is recorded: upstream is not asked again."""
    end = SlowEnd(monkeypatch, where)
    blob = upstream.add_blob(os.urandom(MIB))
    mirror: Mirror = await start()
    upstream.fail(blob.hex, hold := Hold(1000))
    missed, go_on = asyncio.Event(), asyncio.Event()

    async def check(negative: Negative, key: str) -> None:
        missed.set()
        await go_on.wait()

    first = asyncio.create_task(mirror.get(path(blob)))
    try:
        await hold.reached.wait()
        monkeypatch.setattr(Negative, "check", check)
        second = asyncio.create_task(mirror.get(path(blob)))
        await missed.wait()
        hold.release.set()
        await until(end.reached.is_set)
        go_on.set()
        for task in (first, second):
            assert (await task).digest() == blob
    finally:
        end.release()
        go_on.set()
    assert [asked.method for asked in upstream.asked] == ["GET"]
    await until(lambda: mirror.spooled() == [])
    assert (await mirror.get(path(blob))).cache == "mirror; hit"


async def test_a_blob_that_is_fetched_again_before_its_damaged_file_is_forgotten_is_not_forgotten(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removes a file deletes its row a moment later; by then another client may have brought the blob back, and its new row stays."""
    blob = upstream.add_blob(os.urandom(1000))
    mirror: Mirror = await start()
    await mirror.get(path(blob))
    await until_counted(mirror, 1)
    overwrite(mirror, blob, like_rot=True)
    removed, released = threading.Event(), threading.Event()
    remove = BlobStore.remove_damaged

    def slowly(store: BlobStore, fd: int, digest: Digest) -> None:
        remove(store, fd, digest)
        removed.set()
        assert released.wait(60)

    monkeypatch.setattr(BlobStore, "remove_damaged", slowly)
    try:
        for _ in range(2):
            await mirror.get(path(blob))
        await until(removed.is_set)
        assert (await mirror.get(path(blob))).digest() == blob
        await mirror.until_cached(blob)
        await until(lambda: mirror.spooled() == [])
    finally:
        released.set()
    await mirror.stop()
    with contextlib.closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db:
        assert db.execute("SELECT digest, size FROM content").fetchall() == [(str(blob), 1000)]


async def until_counted(mirror: Mirror, blobs: int) -> None:
    """Waits until the catalog has so many rows."""
    for _ in patiently():
        if await mirror.metric("mirror_cache_blobs") == blobs:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{await mirror.metric('mirror_cache_blobs')} blobs are counted, not {blobs}")


async def test_a_verification_holds_up_nobody(start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks again for a blob of many gigabytes gets it at once, and so does everybody behind the same address; it is verified once, however many ask."""
    blob = upstream.add_blob(os.urandom(MIB))
    mirror: Mirror = await start()
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    released, verified = threading.Event(), []
    verify = BlobStore.verify

    def slowly(store: BlobStore, digest: Digest, given_up: Callable[[], bool]) -> bool:
        verified.append(digest)
        assert released.wait(60)
        return verify(store, digest, given_up)

    monkeypatch.setattr(BlobStore, "verify", slowly)
    try:
        for got in [await mirror.get(path(blob)), *await asyncio.gather(*(mirror.get(path(blob)) for _ in range(5)))]:
            assert (got.digest(), got.cache) == (blob, "mirror; hit")
        await until(lambda: bool(verified))
    finally:
        released.set()
    assert verified == [blob]


async def test_a_mirror_that_stops_does_not_wait_for_a_verification(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of many gigabytes on a slow disk; what it has not found out is neither sealed nor removed."""
    blob = upstream.add_blob(os.urandom(8 * MIB))
    mirror: Mirror = await start(settings={"server": {"drain_timeout": 0.1}})
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    os.utime(file(mirror, blob))
    hasher = Digest.hasher
    reached = asyncio.Event()
    chunks: list[int] = []
    loop = asyncio.get_running_loop()

    class Slow:
        def __init__(self) -> None:
            self._hasher = hasher(blob)
            self.hexdigest = self._hasher.hexdigest

        def update(self, data: memoryview) -> None:
            chunks.append(len(data))
            loop.call_soon_threadsafe(reached.set)
            time.sleep(0.3)
            self._hasher.update(data)

    monkeypatch.setattr(Digest, "hasher", lambda _: Slow())
    asking = asyncio.create_task(mirror.get(path(blob)))
    await reached.wait()
    await mirror.stop()
    assert len(chunks) < 4
    with contextlib.suppress(aiohttp.ClientError):
        await asking
    monkeypatch.undo()
    assert mirror.cached(blob)
    opened = BlobStore(mirror.directory).open(blob)
    assert opened is not None
    assert not opened.sealed
    opened.close()


async def test_where_files_cannot_be_sealed_each_is_verified_once(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as on a file system that knows whole seconds only: not at every request."""

    def whole_seconds(target: Any, *, ns: tuple[int, int]) -> None:
        utime(target, ns=(ns[0], ns[1] // 10**9 * 10**9))

    utime, verify = os.utime, BlobStore.verify
    verified: list[Digest] = []

    def counted(store: BlobStore, digest: Digest, given_up: Callable[[], bool]) -> bool:
        verified.append(digest)
        return verify(store, digest, given_up)

    monkeypatch.setattr(os, "utime", whole_seconds)
    monkeypatch.setattr(BlobStore, "verify", counted)
    blob = upstream.add_blob(os.urandom(MIB))
    mirror: Mirror = await start()
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    await mirror.stop()
    again: Mirror = await start()
    for _ in range(3):
        assert (await again.get(path(blob), Range="bytes=0-9")).cache == "mirror; hit"
    assert verified == [blob]
