"""Reads everything again from time to time, gently, and heals what has rotted on the disk.

One process does it for all that share the directory. Damaged content is removed at once, so that nobody gets it, and a blob is fetched again where it is known who holds it;
a manifest is fetched again when somebody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import mmap
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from mirror import metrics
from mirror.cache.blobs import BlobStore
from mirror.cache.disk import Disk
from mirror.cache.records import Records
from mirror.errors import MirrorError
from mirror.names import Digest, Repository

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
_SHORTEST_PAUSE = 0.02
"""Seconds between two files, however small they are."""
_LONGEST_PAUSE = 60.0
"""Seconds until it is looked again for what is due."""


class _Closable(Protocol):
    async def aclose(self) -> None: ...


Fetch = Callable[[Repository, Digest], Awaitable[tuple[_Closable, object]]]
"""Gives a reader of a blob, whose download goes on without it. Raises MirrorError."""


class Scrub:
    """A chore."""

    def __init__(self, store: BlobStore, records: Records, rate: int, interval: float) -> None:
        """`rate` in bytes a second; content is read again after `interval` seconds."""
        self._store = store
        self._records = records
        self._rate = rate
        self._interval = interval

    async def run(self, fetch: Fetch) -> None:
        """Never ends."""
        thread = Disk(1)
        with contextlib.closing(thread), open(self._store.root / "catalog" / "scrub.lock", "wb") as file:
            await thread.run(_yield_to_others)
            while not _locked(file.fileno()):
                await asyncio.sleep(_LONGEST_PAUSE)
            while True:
                try:
                    due = await self._records.read(None, self._records.catalog.unverified, time.time() - self._interval)
                    if due is not None:
                        await self._check(*due, thread, fetch)
                    await asyncio.sleep(_SHORTEST_PAUSE if due else min(_LONGEST_PAUSE, self._interval / 4))
                except Exception:
                    log.exception("could not scrub; serving goes on")
                    await asyncio.sleep(_LONGEST_PAUSE)

    async def _check(self, digest: Digest, size: int, thread: Disk, fetch: Fetch) -> None:
        catalog = self._records.catalog
        try:
            fd = await thread.run(_open, self._store.path(digest))
        except FileNotFoundError:
            # Evicted a moment ago, or deleted by hand.
            await self._records.write(catalog.forget, [digest])
            return
        try:
            if await self._intact(fd, digest, size, thread):
                await self._records.write(catalog.set_verified, digest, time.time())
                return
            await self._remove(fd, digest)
        finally:
            os.close(fd)
        holder = await self._records.read(None, catalog.holder, digest)
        await self._records.write(catalog.forget, [digest])
        if holder is not None:
            try:
                reader, _ = await fetch(holder, digest)
                await reader.aclose()
            except MirrorError as error:
                log.warning("%s cannot be fetched again now, but will be when it is asked for: %s", digest, error)

    async def _intact(self, fd: int, digest: Digest, size: int, thread: Disk) -> bool:
        if os.fstat(fd).st_size != size:
            return False
        hasher, position = digest.hasher(), 0
        with contextlib.closing(mmap.mmap(-1, _CHUNK)) as buffer:  # on a page's border, as O_DIRECT asks for

            def read_and_hash() -> int:
                with memoryview(buffer) as view:
                    count = os.preadv(fd, [view], position)
                    hasher.update(view[:count])
                return count

            while position < size:
                began = time.monotonic()
                try:
                    count = await thread.run(read_and_hash)
                except OSError as error:
                    log.error("%s cannot be read: %s", digest, error)
                    return False
                if count == 0:
                    return False
                position += count
                metrics.scrubbed_bytes.inc(count)
                await asyncio.sleep(max(0.0, count / self._rate - (time.monotonic() - began)))
        return hasher.hexdigest() == digest.hex

    async def _remove(self, fd: int, digest: Digest) -> None:
        """Unlinks the very file that was read, readers or not: what they have is wrong, and who comes next shall not have it."""
        log.error("%s is damaged on disk: removed, to be fetched again", digest)
        metrics.scrub_damaged.inc()
        with contextlib.suppress(OSError):
            path = self._store.path(digest)
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                os.unlink(path)


def _open(path: str) -> int:
    """Past the page cache where that goes: the disk is what is to be checked, and what others read shall stay in memory."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _yield_to_others() -> None:
    """The lowest priority, for this thread alone: to Linux a thread is a process here (setpriority(2), "C library/kernel differences")."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
