"""The hash of a blob while it comes in: of what comes in order straight from memory, of the rest by reading it back from the file."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mirror.names import Digest
from mirror.storage.partial import Partial

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP = 2 * 1024 * 1024
"""Bytes that are worth a turn of reading back."""


class Verifier:
    """Hashes one spool file, from byte 0 on. Its methods belong to the event loop; the hashing is done in threads, one at a time."""

    def __init__(self, spool: Partial, digest: Digest) -> None:
        self._spool = spool
        self._digest = digest
        self._hasher = digest.hasher()
        self._position = 0
        self._busy = False
        self._news = asyncio.Event()

    def progress(self) -> None:
        """Tells of new bytes in the file, or of its size."""
        self._news.set()

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes into the spool, and hashes them on the way where they are the next ones. Raises StorageFull, OSError."""
        if self._busy or offset != self._position:
            await self._spool.write(offset, data)
            return
        with self._turn():
            await self._spool.write(offset, data, self._hasher)
            self._position = offset + len(data)

    async def matches(self) -> bool:
        """Waits until the whole blob is hashed. False when its digest is another."""
        while self._position != self._spool.size:
            ready = self._spool.have.covered_until(self._position)
            if not self._busy and (ready - self._position >= _STEP or (ready == self._spool.size and ready > self._position)):
                with self._turn():
                    self._position = await self._spool.hash(self._hasher, self._position, ready)
            else:
                self._news.clear()
                await self._news.wait()
        return self._hasher.hexdigest() == self._digest.hex

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._news.set()
