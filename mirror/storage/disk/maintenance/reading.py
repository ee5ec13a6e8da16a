"""Reads and hashes finished content with the lowest priority and without filling the page cache: for the scrub and for `mirror verify`."""

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
    """Has a thread of its own with the lowest priority. The caller closes it."""

    def __init__(self, store: BlobStore, rate: int = 0) -> None:
        """`rate` in bytes per second; 0 reads as fast as possible, but rests half of the time."""
        self._store = store
        self._rate = rate
        self._thread = ThreadPool(1)

    async def start(self) -> None:
        await self._thread.run(_yield_to_others)

    def close(self) -> None:
        self._thread.close()

    async def open(self, digest: Digest) -> int:
        """Returns a descriptor of the blob's file, which the caller closes. Raises FileNotFoundError if it is gone, OSError."""
        return await self._thread.run(_open, self._store.path(digest))

    async def intact(self, fd: int, digest: Digest, size: int) -> bool:
        """Returns True if a file has its length, can be read and matches its digest. It is sealed then.

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
                # Without a rate it rests for as long as it worked: the busier the machine, the longer.
                await asyncio.sleep(max(0.0, count / self._rate - worked) if self._rate else worked)
        if hasher.hexdigest() != digest.hex:
            return False
        self._store.seal(fd, digest, since)
        return True


def _open(path: str) -> int:
    """Bypasses the page cache if possible: the disk is to be checked, and the cache is for files that clients read."""
    try:
        return open_file(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return open_file(path, os.O_RDONLY)


def _yield_to_others() -> None:
    """Gives this thread the lowest priority. On Linux the call affects one thread (setpriority(2), "C library/kernel differences")."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
