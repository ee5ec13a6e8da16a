"""Reads finished content again and hashes it, past the page cache, and out of others' way: for the scrub, and for `mirror verify`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import mmap
import os
import threading
import time

from mirror import metrics
from mirror.names import Digest
from mirror.regular_files import open_file
from mirror.storage.disk.blobs import ROTTEN, BlobStore
from mirror.threads import ThreadPool

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024


class Reading:
    """Has a thread of its own, of the lowest priority. Whoever makes it closes it."""

    def __init__(self, store: BlobStore, rate: int = 0) -> None:
        """`rate` in bytes a second; 0 for as fast as it goes while half of the time is left to others."""
        self._store = store
        self._rate = rate
        self._thread = ThreadPool(1)

    async def start(self) -> None:
        await self._thread.run(_yield_to_others)

    def close(self) -> None:
        self._thread.close()

    async def open(self, digest: Digest) -> int:
        """A descriptor of the blob's file, to be closed. Raises FileNotFoundError where it is gone, OSError."""
        return await self._thread.run(_open, self._store.path(digest))

    async def intact(self, fd: int, digest: Digest, size: int) -> bool:
        """True where a file has its length, and all of it can be read and is what its name says: it is sealed then.

        Raises OSError where it cannot be read for want of something else than the disk.
        """
        since = os.fstat(fd)
        if since.st_size != size:
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
                    count = await self._thread.run(read_and_hash)
                except OSError as error:
                    if error.errno not in ROTTEN:
                        raise
                    log.error("%s cannot be read: %s", digest, error)
                    return False
                if count == 0:
                    return False
                position += count
                metrics.scrubbed_bytes.inc(count)
                worked = time.monotonic() - began
                # Without a rate it rests as long as it worked, which takes longer the more others have to do.
                await asyncio.sleep(max(0.0, count / self._rate - worked) if self._rate else worked)
        if hasher.hexdigest() != digest.hex:
            return False
        self._store.seal(fd, digest, since)
        return True


def _open(path: str) -> int:
    """Past the page cache where that goes: the disk is what is to be checked, and what others read shall stay in memory."""
    try:
        return open_file(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return open_file(path, os.O_RDONLY)


def _yield_to_others() -> None:
    """The lowest priority, for this thread alone: to Linux a thread is a process here (setpriority(2), "C library/kernel differences")."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
