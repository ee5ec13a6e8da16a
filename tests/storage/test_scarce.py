"""Scarce and failing resources: only what is not there is absent. All else is passed through or said, and nothing is forgotten for it."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mirror.errors import CatalogFailed
from mirror.names import Digest, Repository, Tag
from mirror.regular_files import open_file
from mirror.storage.disk import blobs
from mirror.storage.disk.catalog import catalog
from mirror.storage.disk.maintenance import reading
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Upkeep
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.programs import missing, run
from tests.support.scripted import Image, Scripted

MIB = 1024 * 1024
APP, LATEST = Repository("docker.io", "library/app"), Tag("latest")
BY_TAG = "/v2/app/manifests/latest"
LASTING = [errno.EMFILE, errno.EIO, errno.EACCES, errno.ENFILE, errno.EPERM]


def path(digest: Digest) -> str:
    return f"/v2/app/blobs/{digest}"


@contextmanager
def failing(digest: Digest, error: int, monkeypatch: pytest.MonkeyPatch, times: int = 10**9) -> Iterator[None]:
    """Opening one blob's file fails, so many times."""
    left = times

    def open_or_fail(name: str | Path, flags: int) -> int:
        nonlocal left
        if str(name).endswith(digest.hex) and left > 0:
            left -= 1
            raise OSError(error, os.strerror(error), str(name))
        return open_file(name, flags)

    with monkeypatch.context() as patch:
        for module in (blobs, reading):
            patch.setattr(module, "open_file", open_or_fail)
        yield


async def pinned_image(start: StartMirror, upstream: Scripted) -> tuple[Mirror, Image]:
    """Cached whole, pinned, and not in memory."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(MIB)])
    mirror: Mirror = await start()
    await mirror.get(BY_TAG)
    for blob in (image.config, *image.layers):
        await mirror.get(path(blob))
        await mirror.until_cached(blob)
    await mirror.stop()
    async with DiskStore(mirror.directory, Upkeep(2**40)) as store:
        assert await store.pin(APP, LATEST)
    return await start(), image


async def known(mirror: Mirror) -> tuple[int, int, int]:
    """How many contents, holdings and pins the catalog has."""
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db:
        one, two, three = (db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("content", "holding", "pin"))
    return one, two, three


@pytest.mark.parametrize("error", LASTING)
async def test_what_cannot_be_opened_is_not_forgotten(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A pinned image's manifest and layer come from upstream while the disk does not give them; rows, holdings and pin are as before, and then it is a hit."""
    mirror, image = await pinned_image(start, upstream)
    before, asked = await known(mirror), upstream.count("GET", str(image.layers[0]))
    files = {name.name: name.stat().st_ino for name in (mirror.directory / "blobs" / "sha256").iterdir()}
    with failing(image.layers[0], error, monkeypatch):
        got = await mirror.get(path(image.layers[0]))
        assert (got.digest(), got.cache) == (image.layers[0], "mirror; fwd=miss; detail=not-stored")
    assert upstream.count("GET", str(image.layers[0])) == asked + 1
    with failing(image.digest, error, monkeypatch):
        assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).body == image.body
    assert await known(mirror) == before
    got = await mirror.get(path(image.layers[0]))
    assert (got.digest(), got.cache) == (image.layers[0], "mirror; hit")
    assert upstream.count("GET", str(image.layers[0])) == asked + 1
    left = {name.name: name.stat().st_ino for name in (mirror.directory / "blobs" / "sha256").iterdir()}
    assert left[image.layers[0].hex] == files[image.layers[0].hex]
    assert left.keys() == files.keys()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_is_scarce_for_a_moment_is_waited_for(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Descriptors that are there again at once: a hit, and upstream is not asked."""
    mirror, image = await pinned_image(start, upstream)
    asked = upstream.count("GET")
    with failing(image.layers[0], error, monkeypatch, times=2):
        assert (await mirror.get(path(image.layers[0]))).cache == "mirror; hit"
    with failing(image.digest, error, monkeypatch, times=2):
        assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).cache == "mirror; hit"
    assert upstream.count("GET") == asked


@pytest.mark.parametrize("size", [5000, 3 * MIB])
@pytest.mark.parametrize("at", [0, 0.5])
async def test_a_disk_that_fails_within_a_blob(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, size: int, at: float
) -> None:
    """The client gets all of it, the rest from upstream, in one response; the file is read anew behind, removed, and the next one fetches it again."""
    blob = upstream.add_blob(data := os.urandom(size))
    mirror: Mirror = await start()
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    await mirror.stop()
    mirror = await start()
    whole, sendfile, pread = mirror.directory / "blobs" / "sha256" / blob.hex, os.sendfile, os.pread
    broken, bad = whole.stat().st_ino, int(size * at)

    def send(out: int, fd: int, offset: int, count: int) -> int:
        if os.fstat(fd).st_ino == broken:
            if offset >= bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            count = min(count, bad - offset)
        return sendfile(out, fd, offset, count)

    def read(fd: int, count: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == broken and offset + count > bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "sendfile", send)
    monkeypatch.setattr(os, "pread", read)
    # What was there is no longer what its digest says, for who reads it anew.
    with open(whole, "r+b") as file:
        file.write(bytes([data[0] ^ 1]))
    os.utime(whole, ns=(whole.stat().st_atime_ns, whole.stat().st_mtime_ns // 10**9 * 10**9 + blobs._fraction(blob)))
    got = await mirror.get(path(blob))
    assert not got.cut
    assert len(got.body) == size
    assert got.body[bad:] == data[bad:]
    assert upstream.count("GET", str(blob)) == 2
    await until(lambda: not whole.exists())
    monkeypatch.undo()
    got = await mirror.get(path(blob))
    assert (got.body, got.cache) == (data, "mirror; fwd=miss; stored")


# ---------------------------------------------------------------------- full disks


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        missing("mounting a small file system takes root")
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder))
    yield folder
    run("umount", "-l", str(folder))


def fill(folder: Path) -> Path:
    """Takes all that is left."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


@pytest.mark.parametrize("cached", [False, True])
async def test_it_starts_on_a_full_disk(start: StartMirror, upstream: Scripted, small: Path, cached: bool) -> None:
    """Without a catalog: cached blobs are served, others passed through, pins refused in words. Once there is room, all is as before."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(MIB)])
    other = upstream.add_blob(os.urandom(MIB))
    directory = small / "cache"
    if cached:
        mirror: Mirror = await start(directory=directory, min_free=0)
        await mirror.get(BY_TAG)
        await mirror.get(path(image.layers[0]))
        await mirror.until_cached(image.layers[0])
        await mirror.stop()
    ballast = fill(small)
    mirror = await start(directory=directory, min_free=0)
    assert (await mirror.get(BY_TAG)).body == image.body
    got = await mirror.get(path(image.layers[0]))
    assert (got.digest(), got.cache) == (image.layers[0], "mirror; hit" if cached else "mirror; fwd=miss; detail=not-stored")
    got = await mirror.get(path(other))
    assert (got.digest(), got.cache) == (other, "mirror; fwd=miss; detail=not-stored")
    await mirror.stop()
    async with DiskStore(directory, Upkeep(2**40)) as store:
        if not cached:
            with pytest.raises(CatalogFailed, match="disk is full"):
                await store.pin(APP, LATEST)
        ballast.unlink()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await store.pin(APP, LATEST)
                    break
                except CatalogFailed:
                    await asyncio.sleep(0.1)
        assert await store.unpin(APP, LATEST)


async def test_some_of_the_disk_stays_free(start: StartMirror, upstream: Scripted, small: Path) -> None:
    """Whatever `max_size` says: blobs go before the last quarter of the disk is taken, and what cannot fit is passed through."""
    mirror: Mirror = await start(directory=small / "cache", max_size="1TiB", min_free=0.25)
    for _ in range(8):
        await mirror.get(path(upstream.add_blob(os.urandom(MIB))))
        state = os.statvfs(small)
        assert state.f_bavail >= state.f_blocks * 0.2
    large = upstream.add_blob(os.urandom(7 * MIB))
    got = await mirror.get(path(large))
    assert (got.digest(), got.cache) == (large, "mirror; fwd=miss; detail=not-stored")
    assert await mirror.metric("mirror_evictions_total") > 0


async def test_a_read_only_disk(start: StartMirror, upstream: Scripted, small: Path) -> None:
    """The mirror starts, serves what is cached and passes the rest through; pins are refused in words, and are there again with a disk that takes bytes."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(MIB)])
    other = upstream.add_blob(os.urandom(MIB))
    directory = small / "cache"
    mirror: Mirror = await start(directory=directory, min_free=0)
    await mirror.get(BY_TAG)
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    await mirror.stop()
    async with DiskStore(directory, Upkeep(2**40)) as store:
        assert await store.pin(APP, LATEST)
    run("mount", "-o", "remount,ro", str(small))
    mirror = await start(directory=directory, min_free=0)
    assert (await mirror.get(BY_TAG)).body == image.body
    got = await mirror.get(path(image.layers[0]))
    assert (got.digest(), got.cache) == (image.layers[0], "mirror; hit")
    assert (await mirror.get(path(other))).cache == "mirror; fwd=miss; detail=not-stored"
    await mirror.stop()
    async with DiskStore(directory, Upkeep(2**40)) as store:
        with pytest.raises(CatalogFailed, match=str(directory)):
            await store.unpin(APP, LATEST)
    run("mount", "-o", "remount,rw", str(small))
    async with DiskStore(directory, Upkeep(2**40)) as store:
        assert await store.unpin(APP, LATEST)


async def test_a_closed_store_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """So that its disk can be unmounted."""
    async with DiskStore(tmp_path, Upkeep(2**40)) as store:
        await store.set_document("tags", {"asked": 1.0, "list": []})
        await store.inventory.totals()
    open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [name for name in open_files if name.startswith(str(tmp_path))]


def test_a_catalog_that_cannot_be_opened_leaves_no_descriptor_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried every five seconds for as long as the disk is full."""

    def full(_: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(catalog, "Documents", full)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(sqlite3.OperationalError):
            catalog.Catalog(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_an_older_mirror_wrote_is_cleared_away(start: StartMirror, tmp_path: Path) -> None:
    """The directory looks like an OCI image layout no more: it is none."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "oci-layout").write_text("{}")
    mirror: Mirror = await start(tmp_path / "cache")
    await until(lambda: not (mirror.directory / "oci-layout").exists())


async def test_a_process_that_has_no_descriptor_left_forgets_nothing(upstream: Scripted, tmp_path: Path) -> None:
    """Really none, for a moment: answers say so, and none of them that something is not there. With descriptors again all is a hit, and the pin is there."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(MIB)])
    paths = [BY_TAG, f"/v2/app/manifests/{image.digest}", path(image.layers[0]), path(image.config)]
    cache = tmp_path / "cache"

    def ask(mirror: MirrorProcess) -> None:
        connection = http.client.HTTPConnection(mirror.url.removeprefix("http://"), timeout=PATIENCE)

        def statuses(method: str = "GET") -> list[int]:
            found = []
            for name in paths:
                connection.request(method, name)
                response = connection.getresponse()
                response.read()
                found.append(response.status)
            return found

        assert statuses() == [200] * 4
        connection.close()
        mirror.terminate()
        subprocess.run(
            [sys.executable, "-m", "mirror", "pin", "app:latest", "--cache-dir", str(cache)], check=True, timeout=PATIENCE
        )
        mirror.start()
        connection = http.client.HTTPConnection(mirror.url.removeprefix("http://"), timeout=PATIENCE)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        limits = resource.prlimit(mirror.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(mirror.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        scarce = statuses() + statuses("HEAD")
        resource.prlimit(mirror.pid, resource.RLIMIT_NOFILE, limits)
        assert set(scarce) <= {200, 503}, scarce
        assert statuses() == [200] * 4
        connection.close()

    with MirrorProcess(cache, {"docker.io": upstream.url}) as mirror:
        await asyncio.to_thread(ask, mirror)
        assert mirror.terminate() == 0
    assert upstream.count("GET", str(image.layers[0])) == 1
    async with DiskStore(cache, Upkeep(2**40)) as store:
        [listed] = (await store.inventory.images()).entries
        assert (listed.digest, listed.pinned) == (image.digest, True)
        assert len(await store.contents()) == 3
