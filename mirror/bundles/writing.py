"""Reads a bundle's bytes out of the cache, and writes them to files and pipes: the kernel copies blobs from one file to the other."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from mirror.bundles.layout import Layout, Stored
from mirror.errors import StorageUnreadable
from mirror.storage.slices import FileSlice, Part, Reader
from mirror.storage.store import Store

_CHUNK = 16 * 1024 * 1024
"""Bytes between two reports of progress."""
_BUFFER = 1024 * 1024
_NOT_BY_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV)
"""Errors of sendfile(2) between files that it cannot serve, such as one opened for appending."""


class BlobGone(StorageUnreadable):
    """A blob was removed from the cache, or has become another size, since the bundle was laid out."""


class Sink(Protocol):
    """Takes a bundle's bytes. Its methods block, and raise OSError."""

    def write(self, data: bytes) -> None: ...
    def copy(self, part: FileSlice) -> None: ...


class BundleReader:
    """Reads a bundle, or any range of it. It opens one blob after the other, and holds nothing in between."""

    def __init__(self, layout: Layout, store: Store) -> None:
        self.size: int | None = layout.size
        self._layout = layout
        self._store = store

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        """See `Reader.parts`. Raises BlobGone, StorageUnreadable."""
        for piece, first, last in self._layout.parts(start, stop):
            if isinstance(piece, bytes):
                yield piece[first:last]
                continue
            async with aclosing(await self._open(piece)) as reader, aclosing(reader.parts(first, last)) as parts:
                async for part in parts:
                    yield part

    async def _open(self, piece: Stored) -> Reader:
        reader = await self._store.open(piece.digest)
        if reader is None:
            raise BlobGone(f"{piece.digest} has been removed from the cache meanwhile: pin the images, and export them again")
        if reader.size != piece.size:
            await reader.aclose()
            raise BlobGone(f"{piece.digest} has {reader.size} bytes in the cache now, and had {piece.size}: export again")
        return reader

    async def aclose(self) -> None:
        pass


async def write(layout: Layout, store: Store, sink: Sink, progress: Callable[[int], None]) -> None:
    """Writes a bundle. `progress` is called with the bytes written so far. Raises BlobGone, StorageUnreadable; OSError of the sink or the cache's disk."""
    done = 0
    async with aclosing(BundleReader(layout, store).parts(0, None)) as parts:
        async for part in parts:
            if isinstance(part, bytes):
                await asyncio.to_thread(sink.write, part)
                done += len(part)
                progress(done)
                continue
            for offset in range(part.offset, part.offset + part.length, _CHUNK):
                length = min(_CHUNK, part.offset + part.length - offset)
                await asyncio.to_thread(sink.copy, FileSlice(part.fd, offset, length))
                done += length
                progress(done)


class Output:
    """A pipe, or a file that was opened for writing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._by_kernel = True

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def copy(self, part: FileSlice) -> None:
        offset, end = part.offset, part.offset + part.length
        while offset < end:
            if self._by_kernel:
                try:
                    count = os.sendfile(self._fd, part.fd, offset, end - offset)
                except OSError as error:
                    if error.errno not in _NOT_BY_KERNEL:
                        raise
                    self._by_kernel = False
                    continue
            else:
                data = os.pread(part.fd, min(_BUFFER, end - offset), offset)
                self.write(data)
                count = len(data)
            if count == 0:
                raise OSError(errno.EIO, "a file of the cache is shorter than it was")
            offset += count


class SplitOutput:
    """Files of at most `limit` bytes each, opened one after the other by `begin`, which takes their number and returns a descriptor."""

    def __init__(self, limit: int, begin: Callable[[int], int]) -> None:
        self._limit = limit
        self._begin = begin
        self._number = 0
        self._room = 0
        self._output: Output | None = None

    def _next(self) -> Output:
        if self._output is None or not self._room:
            self._output, self._room = Output(self._begin(self._number)), self._limit
            self._number += 1
        return self._output

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            output = self._next()
            piece, rest = rest[: self._room], rest[self._room :]
            output.write(bytes(piece))
            self._room -= len(piece)

    def copy(self, part: FileSlice) -> None:
        offset, end = part.offset, part.offset + part.length
        while offset < end:
            output = self._next()
            length = min(self._room, end - offset)
            output.copy(FileSlice(part.fd, offset, length))
            self._room -= length
            offset += length
