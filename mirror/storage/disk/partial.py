"""The disk store's downloads in progress: a spool file, and room that is made for its bytes as they are written."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mirror.errors import StorageFull
from mirror.names import Digest, Repository
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.files import FULL
from mirror.storage.disk.maintenance.eviction import step
from mirror.storage.disk.spool import Spool
from mirror.storage.extents import Extents
from mirror.storage.slices import FileSlice
from mirror.threads import ThreadPool

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

_BUFFER = 1024 * 1024


class Reservations:
    """What the downloads that this process leads have, and are promised: in bytes, by the name of their file."""

    def __init__(
        self,
        limit: int,
        reserved: dict[str, int],
        make_room: Callable[[int], Awaitable[None]],
        could_fit: Callable[[int, str], Awaitable[bool]],
    ) -> None:
        """`make_room` makes room for so many bytes more than all that is `reserved`, or raises StorageFull.

        `could_fit` returns whether so many bytes of a download can be kept after everything that may be evicted is.
        """
        self.limit = limit
        self.reserved = reserved
        self._make_room = make_room
        self._could_fit = could_fit

    async def check(self, name: str, size: int) -> None:
        """Raises StorageFull where a download of `size` bytes cannot be kept, whatever is evicted."""
        if size > self.limit:
            raise StorageFull(f"{size} bytes are more than the whole cache may hold ({self.limit})")
        if not await self._could_fit(size, name):
            raise StorageFull(f"there can be no room for {size} bytes")

    async def grow(self, name: str, here: int, size: int | None, need: int) -> None:
        """Reserves room for `need` bytes beside the `here` that a download has, in a bounded step. Raises StorageFull."""
        granted = self.reserved.get(name, here)
        if here + need <= granted:
            return
        wanted = here + max(need, min(step(here, self.limit), need if size is None else size - here))
        await self._make_room(wanted - granted)
        self.reserved[name] = max(wanted, self.reserved.get(name, 0))

    def end(self, name: str) -> None:
        self.reserved.pop(name, None)


class DiskPartial:
    """Implements `mirror.storage.partial.Partial`."""

    def __init__(
        self,
        blobs: BlobStore,
        digest: Digest,
        threads: ThreadPool,
        reservations: Reservations,
        committed: Callable[[Digest, int], Awaitable[None]],
        claimed: int | None = None,
    ) -> None:
        """`committed` enters a finished blob into the catalog. Raises OSError."""
        self.digest = digest
        self._blobs = blobs
        self._threads = threads
        self._reservations = reservations
        self._committed = committed
        self._spool = Spool(blobs, digest, claimed)
        self._name = self._spool.name

    @property
    def have(self) -> Extents:
        return self._spool.have

    @property
    def size(self) -> int | None:
        return self._spool.size

    @property
    def verified(self) -> bool:
        return self._spool.verified

    @property
    def inherited(self) -> bool:
        return self._spool.inherited

    @property
    def current(self) -> bool:
        return self._spool.leads or self._spool.current

    def lead(self) -> bool:
        if not self._spool.lead():
            return False
        if self._spool.leads:
            self._reservations.reserved[self._name] = self._spool.have.total
        return True

    def follow(self) -> None:
        self._spool.follow()
        if self._spool.verified:
            # As a reader of the finished file, which keeps it from eviction.
            self._spool.share()

    def finished(self) -> bool:
        file = self._blobs.open(self.digest)
        if file is None:
            return False
        try:
            if not file.sealed:
                return False
            self.discard()
            os.dup2(file.fd, self._spool.fd, inheritable=False)
            self._spool.size, self._spool.verified = file.size, True
        finally:
            file.close()
        return True

    def restart(self) -> None:
        self._spool.restart()
        if self._spool.leads:
            self._reservations.reserved[self._name] = 0

    @property
    def leader(self) -> Repository | None:
        return self._spool.sources.leader

    @property
    def attended(self) -> bool:
        return self._spool.sources.attended

    def announce(self, leader: Repository) -> None:
        self._spool.sources.announce(leader)

    def attend(self, reading: bool) -> None:
        self._spool.sources.attend(reading)

    def add_source(self, repository: Repository, size: int | None, *, told: bool) -> None:
        self._spool.sources.add(repository, size, told)

    def take_sources(self) -> list[tuple[Repository, int | None, bool]]:
        return self._spool.sources.take()

    def want(self, start: int, stop: int) -> None:
        self._spool.sources.want(start, stop)

    def take_wanted(self) -> list[tuple[int, int]]:
        return self._spool.sources.take_wanted()

    async def set_size(self, size: int) -> None:
        await self._reservations.check(self._name, size)
        self._spool.set_size(size)

    async def write(self, offset: int, data: bytes | memoryview, hasher: _Hash | None = None) -> None:
        await self._reservations.grow(self._name, self._spool.have.total, self._spool.size, len(data))
        try:
            await self._threads.run(self._write, offset, data, hasher)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # Others fill this disk too.
            reserved = self._reservations.reserved.get(self._name, self._spool.have.total)
            await self._reservations.grow(self._name, reserved, None, len(data))
            try:
                await self._threads.run(self._write, offset, data, hasher)
            except OSError as again:
                raise StorageFull(f"the cache's disk is full: {again.strerror}") from again
        self._spool.note(offset, offset + len(data))

    def _write(self, offset: int, data: bytes | memoryview, hasher: _Hash | None) -> None:
        self._spool.write(offset, data)
        if hasher is not None:
            hasher.update(data)

    async def hash(self, hasher: _Hash, start: int, end: int) -> int:
        return await self._threads.run(_hash, hasher, self._spool.fd, start, end)

    def slice(self, start: int, end: int) -> FileSlice:
        return FileSlice(self._spool.fd, start, end - start)

    async def commit(self) -> None:
        size = self._spool.size or 0
        try:
            await self._threads.run(self._spool.publish)
        except OSError as error:
            self._spool.discard()
            raise StorageFull(f"the cache's disk cannot keep {self.digest}: {error.strerror}") from error
        finally:
            # Its row counts from now on.
            self._reservations.end(self._name)
        await self._committed(self.digest, size)

    def release(self) -> None:
        self._end(self._spool.release)

    def discard(self) -> None:
        self._end(self._spool.discard)

    def close(self) -> None:
        self._end(self._spool.close)

    def _end(self, end: Callable[[], None]) -> None:
        """Ends the download in this process; if it leads, its reservation too."""
        led = self._spool.leads
        end()
        if led:
            self._reservations.end(self._name)


def _hash(hasher: _Hash, fd: int, start: int, end: int) -> int:
    """Reads without the GIL, for the most part."""
    view = memoryview(bytearray(min(_BUFFER, end - start)))
    while start < end:
        count = os.preadv(fd, [view[: end - start]], start)
        if count == 0:
            break
        hasher.update(view[:count])
        start += count
    return start
