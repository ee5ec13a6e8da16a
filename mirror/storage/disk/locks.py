"""The locks of a cache directory, shared by all processes that use it, and the order in which they are taken.

===========  ======================  ========================================================================================
rank         file                    held
===========  ======================  ========================================================================================
KEY          catalog/asking.lock     by who asks upstream for something: one byte of the file for each key
DATABASE     catalog/open.lock       shared while a process has the database open; exclusive for the moment of opening it
MENDING      catalog/mend.lock       by the process that repairs after a start
SCRUB        catalog/scrub.lock      by the process that scrubs
LEAD         spool/….part            by the process that writes a download
EVICTION     catalog/eviction.lock   by who removes content; SQLite's own lock is taken after it
CONTENT      blobs/…                 shared by readers; exclusive by who removes it
===========  ======================  ========================================================================================

A thread that waits for a lock holds none of the same rank or a later one: so no two can wait for each other. `hold` checks it. All others are tried, never
waited for, or waited for without holding a thread (KEY).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from enum import IntEnum
from pathlib import Path

from mirror import file_locks
from mirror.storage.disk.files import open_file

_INTERVAL = 0.02
"""Seconds between two tries for a key."""


class Rank(IntEnum):
    """In the order of taking."""

    KEY = 1
    DATABASE = 2
    MENDING = 3
    SCRUB = 4
    LEAD = 5
    EVICTION = 6
    CONTENT = 7


class _Held(threading.local):
    def __init__(self) -> None:
        self.ranks: list[Rank] = []


_held = _Held()


@contextlib.contextmanager
def hold(path: Path, rank: Rank, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file for this process alone. Blocks, or with `wait` False raises BlockingIOError where another has it. Raises OSError."""
    with _ranked(rank if wait else None):
        fd = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            if wait:
                file_locks.wait_exclusive(fd)
            elif not file_locks.try_exclusive(fd):
                raise BlockingIOError(f"{path} is locked")
            yield
        finally:
            os.close(fd)


@contextlib.contextmanager
def _ranked(rank: Rank | None) -> Iterator[None]:
    if rank is None:
        yield
        return
    assert all(held < rank for held in _held.ranks), f"{rank.name} is taken after {_held.ranks}"
    _held.ranks.append(rank)
    try:
        yield
    finally:
        _held.ranks.remove(rank)


class KeyedFileLock:
    """One lock for each key, in one file: each is a byte, whose offset is the key's hash.

    Excludes other processes only. A file system without such locks, or one that cannot take the file, excludes nobody.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)

    @contextlib.asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        """Waits until no other process holds the same key."""
        fd, offset = self._file, int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        if fd is None:
            yield
            return
        with contextlib.suppress(OSError):
            while not file_locks.try_byte(fd, offset):
                await asyncio.sleep(_INTERVAL)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file_locks.unlock_byte(fd, offset)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
