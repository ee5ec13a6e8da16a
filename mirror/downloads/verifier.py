"""Hashes a blob while it is downloaded. Bytes that come in order are hashed in memory; the others are read back from the file."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mirror.names import Digest
from mirror.storage.partial import Partial

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP = 2 * 1024 * 1024
"""Bytes that are read back and hashed at once, at least."""


class Verifier:
    """Hashes one spool file from byte 0 on. Call its methods on the event loop; the hashing is done in threads, one at a time."""

    def __init__(self, spool: Partial, digest: Digest) -> None:
        self._spool = spool
        self._digest = digest
        self._hasher = digest.hasher()
        self._position = 0
        self._busy = False
        self._news = asyncio.Event()

    def progress(self) -> None:
        """Call this when the file has new bytes, or its size is known."""
        self._news.set()

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes into the spool file, and hashes them where they are the next to be hashed. Raises StorageFull, OSError."""
        if self._busy or offset != self._position:
            await self._spool.write(offset, data)
            return
        with self._hashing():
            await self._spool.write(offset, data, self._hasher)
            self._position = offset + len(data)

    async def matches(self) -> bool:
        """Waits until the whole blob is hashed. Returns False where it has another digest."""
        while self._position != self._spool.size:
            ready = self._spool.have.covered_until(self._position)
            if not self._busy and (ready - self._position >= _STEP or (ready == self._spool.size and ready > self._position)):
                with self._hashing():
                    self._position = await self._spool.hash(self._hasher, self._position, ready)
            else:
                self._news.clear()
                await self._news.wait()
        return self._hasher.hexdigest() == self._digest.hex

    @contextmanager
    def _hashing(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._news.set()
