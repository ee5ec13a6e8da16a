"""Turns at asking upstream, for all processes on one cache directory: what one of them asks, the others need not ask again.

A turn is a lock on one byte of one file, whose place in it is the hash of what is asked (fcntl(2), "Open file description locks"): the kernel gives it up when its
holder dies, however it dies, and no two questions are likely to get into each other's way.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

_FLOCK = struct.Struct("hhqqi0q")
_INTERVAL = 0.02


class KeyedFileLock:
    """In this process, no question may be asked twice at a time: see tasks.py."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextlib.asynccontextmanager
    async def take(self, question: str) -> AsyncIterator[None]:
        """Waits until no other process asks the same. A file system without such locks makes nobody wait."""
        place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:7], "big")
        while True:
            try:
                self._lock(fcntl.F_WRLCK, place)
                break
            except BlockingIOError:
                await asyncio.sleep(_INTERVAL)
            except OSError:
                break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._lock(fcntl.F_UNLCK, place)

    def _lock(self, kind: int, place: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))

    def close(self) -> None:
        os.close(self._file)
