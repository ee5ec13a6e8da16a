"""Every error that a disk, the kernel or SQLite may give, at every call that the storage makes: all is passed through, and nothing is forgotten for it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance import scrub
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Upkeep
from mirror.storage.store import State
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Image, Scripted

ERRORS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.ENOMEM,
)
CALLS = (
    "open",
    "pwrite",
    "pread",
    "sendfile",
    "fsync",
    "replace",
    "ftruncate",
    "stat",
    "scandir",
    "statvfs",
    "unlink",
    "utime",
    "flock",
)
"""Of the modules os and fcntl: what the storage works with."""
SQLITE = (
    "disk I/O error",
    "database or disk is full",
    "attempt to write a readonly database",
    "database is locked",
    "out of memory",
)


class Disk:
    """Calls that name something in a folder, by a path or by a descriptor, fail while `error` is set."""

    def __init__(self, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: int | None = None
        self.failed = 0
        self._folder = str(folder)
        module = fcntl if call == "flock" else os
        original = getattr(module, call)

        def fails(*arguments: Any, **named: Any) -> Any:
            # sendfile(2) is given the socket first.
            what = arguments[1] if call == "sendfile" else arguments[0]
            if self.error is not None and self.is_ours(what):
                self.failed += 1
                raise OSError(self.error, os.strerror(self.error))
            return original(*arguments, **named)

        monkeypatch.setattr(module, call, fails)

    def is_ours(self, what: Any) -> bool:
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
        return path.startswith(self._folder)

    @contextmanager
    def failing(self, error: int) -> Iterator[None]:
        self.error = error
        try:
            yield
        finally:
            self.error = None


def path(digest: Digest) -> str:
    return f"/v2/app/blobs/{digest}"


async def pinned(start: StartMirror, upstream: Scripted, count: int) -> tuple[Mirror, list[Image]]:
    """A mirror with pinned images, cached whole, and nothing of them in memory."""
    images = [upstream.add_image("library/app", str(number), layers=[os.urandom(300_000)]) for number in range(count)]
    mirror: Mirror = await start()
    for number, image in enumerate(images):
        await mirror.get(f"/v2/app/manifests/{number}")
        for blob in (image.config, *image.layers):
            await mirror.get(path(blob))
            await mirror.until_cached(blob)
    await mirror.stop()
    async with DiskStore(mirror.directory, Upkeep(2**40)) as store:
        for number in range(count):
            assert await store.pin(Repository("docker.io", "library/app"), Tag(str(number)))
    mirror = await start()
    # A stop may come between a file and its row, which is taken in after the start.
    await until(lambda: len(kept(mirror, images)[0]) == 3 * count)
    return mirror, images


def kept(mirror: Mirror, images: list[Image]) -> tuple[Any, ...]:
    """What must not be forgotten: rows, tags, holdings, pins and files."""
    names = sorted(str(digest) for image in images for digest in (image.digest, image.config, *image.layers))
    marks = ",".join("?" * len(names))
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db:
        content = db.execute(f"SELECT digest, size FROM content WHERE digest IN ({marks}) ORDER BY digest", names).fetchall()
        rest = [
            db.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}").fetchall()
            for table, columns in (("tag", "tag, digest"), ("holding", "digest"), ("pin", "reference, digest"))
        ]
    files = [mirror.cached(Digest.parse(name)) for name in names]
    return content, rest, files


async def pull(mirror: Mirror, upstream: Scripted, number: int, image: Image) -> None:
    """Everything comes, whole: a tag, what is cached of it, and a blob that is not."""
    assert (await mirror.get(f"/v2/app/manifests/{number}")).body == image.body
    assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).body == image.body
    assert (await mirror.get(path(image.layers[0]))).digest() == image.layers[0]
    assert (await mirror.head(path(image.config))).status == 200
    new = upstream.add_blob(os.urandom(200_000))
    got = await mirror.get(path(new))
    assert (got.digest(), got.cut) == (new, False)


async def after(mirror: Mirror, upstream: Scripted, images: list[Image], before: tuple[Any, ...]) -> None:
    """All is as it was, hits upstream is not asked about, and new blobs are kept."""
    assert kept(mirror, images) == before
    asked = upstream.count("GET")
    for image in images:
        assert (await mirror.get(path(image.layers[0]))).cache == "mirror; hit"
        assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).body == image.body
    assert upstream.count("GET") == asked
    new = upstream.add_blob(os.urandom(200_000))
    assert (await mirror.get(path(new))).digest() == new
    await mirror.until_cached(new)


@pytest.mark.parametrize("call", CALLS)
async def test_an_error_of_the_disk_costs_no_pull_and_nothing_that_is_kept(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever call fails, and with whatever error but "there is no such file"; when it is over, all is served from the cache again."""
    mirror, images = await pinned(start, upstream, len(ERRORS))
    before = kept(mirror, images)
    disk = Disk(mirror.directory, call, monkeypatch)
    for number, (error, image) in enumerate(zip(ERRORS, images, strict=True)):
        with disk.failing(error):
            await pull(mirror, upstream, number, image)
    assert disk.failed, f"{call} was never called"
    await after(mirror, upstream, images, before)


@pytest.mark.parametrize("message", SQLITE)
async def test_an_error_of_sqlite_costs_no_pull_and_nothing_that_is_kept(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    """Tags are asked of upstream then, and blobs and manifests by digest served as before."""
    mirror, images = await pinned(start, upstream, 2)
    before = kept(mirror, images)
    original: Callable[..., Any] = CatalogExecutor._call
    fails = True

    def call(*arguments: Any) -> Any:
        if fails:
            raise sqlite3.OperationalError(message)
        return original(*arguments)

    monkeypatch.setattr(CatalogExecutor, "_call", call)
    for number, image in enumerate(images):
        await pull(mirror, upstream, number, image)
    fails = False
    await after(mirror, upstream, images, before)


@pytest.fixture
async def unreadable(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[DiskStore, list[Image], Disk]]:
    """A store of three images, the second of which has a file that cannot be opened: its layer, or its manifest."""
    mirror, images = await pinned(start, upstream, 3)
    await mirror.stop()
    async with DiskStore(mirror.directory, Upkeep(2**40, scrub_rate=2**40, scrub_interval=10.0)) as store:
        yield store, images, Disk(mirror.directory / "blobs", "open", monkeypatch)


def only(disk: Disk, digest: Digest) -> None:
    disk.is_ours = lambda what: isinstance(what, str) and what.endswith(digest.hex)  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EMFILE, errno.ESTALE])
async def test_one_unreadable_file_keeps_nothing_else_from_being_verified(
    unreadable: tuple[DiskStore, list[Image], Disk], error: int
) -> None:
    """It has a verdict of its own, that it may be whole; it is not removed, and is whole when it can be read again."""
    store, images, disk = unreadable
    only(disk, images[1].layers[0])
    contents = await store.contents()
    for expected in (State.UNREADABLE, State.WHOLE):
        disk.error = error if expected is State.UNREADABLE else None
        async with aclosing(store.verify(contents, remove=True)) as verdicts:
            found = {verdict.digest: verdict async for verdict in verdicts}
        assert {digest: verdict.state for digest, verdict in found.items()} == {
            digest: expected if digest == images[1].layers[0] else State.WHOLE for digest in contents
        }
    assert await store.contents() == contents


async def test_one_unreadable_file_keeps_nothing_else_from_being_scrubbed(
    unreadable: tuple[DiskStore, list[Image], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left for an hour, and the others are read meanwhile."""
    store, images, disk = unreadable
    monkeypatch.setattr(scrub, "_SHORTEST_PAUSE", 0.0)
    only(disk, images[1].layers[0])
    disk.error = errno.EACCES
    await store._catalog.do(Catalog.set_verified, list(await store.contents()), 1.0)
    await store._catalog.do(Catalog.set_verified, [images[1].layers[0]], 0.5)

    async def restored(*_: object) -> None:
        raise AssertionError("nothing is damaged")

    store.start(restored)
    async with asyncio.timeout(PATIENCE):
        while await store._catalog.do(Catalog.unverified, 2.0) is not None:
            await asyncio.sleep(0.05)
    assert disk.failed == 1
    assert store.size(images[1].layers[0]) is not None


async def test_one_unreadable_manifest_keeps_no_image_from_being_listed(
    unreadable: tuple[DiskStore, list[Image], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have their sizes; its own is there when it can be read again."""
    store, images, disk = unreadable
    with closing(sqlite3.connect(store.blobs.root / "catalog" / "content.sqlite")) as db, db:
        db.execute("UPDATE item SET fetched = NULL")
        db.execute("DELETE FROM part")
    only(disk, images[1].digest)
    disk.error = errno.EACCES
    sizes = [image.size > 300_000 for image in (await store.inventory.images()).entries]
    assert sizes == [True, False, True]
    assert (await store.inventory.totals()).images == 3
    disk.error = None
    assert all(image.size > 300_000 for image in (await store.inventory.images()).entries)


async def test_what_cannot_be_read_stays_in_the_catalog(unreadable: tuple[DiskStore, list[Image], Disk]) -> None:
    """Rows of other files that are gone are dropped beside it."""
    store, images, disk = unreadable
    before = len(await store.contents())
    for image in images[:2]:
        os.truncate(store.blobs.path(image.layers[0]), 5)
    only(disk, images[1].layers[0])
    disk.error = errno.EACCES
    await store._mending.mend()
    assert len(await store._catalog.do(Catalog.content)) == before - 1
