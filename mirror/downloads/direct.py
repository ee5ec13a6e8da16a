"""Passes a blob from upstream to one client without keeping it: for a blob that is larger than the cache, or while the disk is full.

Broken connections are resumed as in a flight. A blob that is read from byte 0, or whose beginning is still in a spool file, is verified before its last bytes
are sent; a range from the middle cannot be. Only the range that the client asked for is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from mirror.downloads.download import Download, Source
from mirror.downloads.flight import WITHHELD
from mirror.downloads.parts import Part
from mirror.errors import DigestMismatch, UpstreamInvalid
from mirror.names import Digest
from mirror.storage.partial import Partial

if TYPE_CHECKING:
    from hashlib import _Hash


class DirectReader:
    """One client's reader of a blob that is passed through."""

    def __init__(self, digest: Digest, source: Source, size: int | None = None) -> None:
        """`size` is the size in bytes if upstream has stated it; otherwise None."""
        self.size = size
        self._digest = digest
        self._source = source
        self._whole: Download | None = None

    async def open(self) -> None:
        """Requests the size from upstream unless it is known: by HEAD, or by GET if HEAD does not return it. Raises what upstream raises."""
        if self.size is not None:
            return
        try:
            self.size = (await self._source.describe()).size
        except UpstreamInvalid:
            self._whole = Download(self._source)
            await self._whole.open()
            self.size = self._whole.size

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        whole, self._whole = self._whole, None
        if whole is not None and (start > 0 or stop != self.size):
            await whole.aclose()
            whole = None
        end = None if start == 0 and stop == self.size else stop
        download = whole or Download(self._source, start, end, self.size)
        hasher = self._digest.hasher() if start == 0 else None
        async with aclosing(stream(self._digest, download, stop, hasher)) as parts:
            async for part in parts:
                yield part

    async def aclose(self) -> None:
        if self._whole is not None:
            await self._whole.aclose()


async def go_on(
    digest: Digest, source: Source, spool: Partial, position: int, stop: int | None, size: int | None
) -> AsyncGenerator[Part, None]:
    """Yields the bytes from `position` on to a reader whose flight has ended. What the reader has had already is in `spool`, and is verified with the rest.

    Raises DigestMismatch, or what upstream raises.
    """
    hasher = digest.hasher()
    if position > 0 and await spool.hash(hasher, 0, position) < position:
        raise DigestMismatch(f"the beginning of {digest} is no longer there to verify")
    async with aclosing(stream(digest, Download(source, position, stop, size), stop, hasher)) as parts:
        async for part in parts:
            yield part


async def stream(digest: Digest, download: Download, stop: int | None, hasher: _Hash | None) -> AsyncGenerator[Part, None]:
    """Yields the bytes of a download up to `stop`, and closes it. Raises DigestMismatch before the last bytes of a blob that has another digest."""
    held = b""
    try:
        while data := await download.read():
            if hasher is not None:
                await asyncio.to_thread(hasher.update, data)
            held += data
            if hasher is None:
                ready, held = held, b""
            elif download.size is None or stop is None or stop > download.size - WITHHELD:
                ready, held = held[:-WITHHELD], held[-WITHHELD:]
            else:
                ready, held = held, b""
            if ready:
                yield ready
            if stop is not None and download.position >= stop and download.position != download.size:
                break
        if hasher is not None and download.position == download.size and hasher.hexdigest() != digest.hex:
            raise DigestMismatch(f"upstream's bytes for {digest} are not what their digest says")
        if held:
            yield held
    finally:
        await download.aclose()
