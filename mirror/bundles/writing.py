"""Reads a bundle's bytes out of the cache, and writes them to files and pipes: the kernel copies blobs from one file to the other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Protocol

from mirror.bundles.layout import Layout, Stored
from mirror.errors import StorageUnreadable
from mirror.names import Digest
from mirror.storage.slices import FileSlice, Part, Reader
from mirror.storage.store import Store
from mirror.threads import ThreadPool

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK = 4 * 1024 * 1024
"""Bytes between two reports of progress; as many are hashed while others are sent."""
_BUFFER = 256 * 1024
"""Bytes that are read at once: few enough to stay in the processor's cache until they are hashed."""
_PIPE = 1024 * 1024
"""The size of a pipe in bytes: the largest that Linux lets every user set (pipe(7), "pipe-max-size"). With the default of 64 KiB, writer and reader wait for each other so often that it is a third as fast."""
_NOT_BY_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV)
"""Errors of sendfile(2) between files that it cannot serve, such as one opened for appending."""


class BlobChanged(StorageUnreadable):
    """A blob was removed from the cache, has another size than when the bundle was laid out, or is damaged."""


class Sink(Protocol):
    """Receives a bundle's bytes. Its methods block. They raise BlobChanged, and OSError if writing fails."""

    def write(self, data: bytes) -> None: ...
    def copy(self, part: FileSlice) -> None: ...


class BundleReader:
    """Reads a bundle, or any range of it. It opens one blob at a time.

    Reading ends with an error if a file is changed meanwhile. Damage that does not change the file's times is found only by its digest.
    """

    def __init__(self, layout: Layout, store: Store, threads: ThreadPool | None = None) -> None:
        """With `threads`, whole blobs are hashed there while they are read, one chunk ahead; the last chunk is given out once the digest is verified."""
        self.size: int | None = layout.size
        self._layout = layout
        self._store = store
        self._threads = threads

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        """See `Reader.parts`. Raises BlobChanged, StorageUnreadable."""
        for piece, first, last in self._layout.parts(start, stop):
            if isinstance(piece, bytes):
                yield piece[first:last]
                continue
            async with aclosing(await self._open(piece)) as reader:
                if self._threads is not None and (first, last) == (0, piece.size):
                    found = self._verified(reader, piece, self._threads)
                else:
                    found = reader.parts(first, last)
                async with aclosing(found) as parts:
                    async for part in parts:
                        since = _modified(part)
                        yield part
                        if since != _modified(part):
                            raise BlobChanged(f"{piece.digest} was written to while it was read: export again")

    async def _open(self, piece: Stored) -> Reader:
        reader = await self._store.open(piece.digest)
        if reader is None:
            raise BlobChanged(f"{piece.digest} has been removed from the cache meanwhile: pin the images, and export them again")
        if reader.size != piece.size:
            await reader.aclose()
            raise BlobChanged(f"{piece.digest} has {reader.size} bytes in the cache now, and had {piece.size}: export again")
        return reader

    async def _verified(self, reader: Reader, piece: Stored, threads: ThreadPool) -> AsyncGenerator[Part, None]:
        hasher = piece.digest.hasher()
        before: Part | None = None
        async with aclosing(reader.parts(0, piece.size)) as parts:
            async for part in parts:
                for chunk in _chunks(part):
                    hashing = asyncio.create_task(threads.run(_hash, hasher, chunk, piece.digest))
                    try:
                        if before is not None:
                            yield before
                    finally:
                        await hashing
                    before = chunk
        if hasher.hexdigest() != piece.digest.hex:
            # Removes it, so that it is fetched again.
            self._store.verify_behind(piece.digest)
            raise BlobChanged(f"{piece.digest} is damaged on the cache's disk: pull its image again, then export again")
        if before is not None:
            yield before

    async def aclose(self) -> None:
        pass


def _modified(part: Part) -> tuple[int, int] | None:
    """Another value after the part's file was written to."""
    if isinstance(part, bytes):
        return None
    status = os.fstat(part.fd)
    return status.st_size, status.st_mtime_ns


def _chunks(part: Part) -> Iterator[Part]:
    if isinstance(part, bytes):
        yield part
        return
    end = part.offset + part.length
    for offset in range(part.offset, end, _CHUNK):
        yield FileSlice(part.fd, offset, min(_CHUNK, end - offset))


def _hash(hasher: _Hash, part: Part, digest: Digest) -> None:
    """Blocks. Raises BlobChanged, StorageUnreadable."""
    if isinstance(part, bytes):
        hasher.update(part)
        return
    offset, end = part.offset, part.offset + part.length
    buffer = memoryview(bytearray(min(_BUFFER, part.length)))
    while offset < end:
        try:
            count = os.preadv(part.fd, [buffer[: end - offset]], offset)
        except OSError as error:
            raise StorageUnreadable(f"the cache's disk cannot read {digest}: {error.strerror}") from error
        if count == 0:
            raise BlobChanged(f"{digest} has become shorter in the cache: pull its image again, then export again")
        hasher.update(buffer[:count])
        offset += count


async def write(layout: Layout, store: Store, sink: Sink, progress: Callable[[int], None], *, verify: bool) -> None:
    """Writes a bundle. `progress` is called with the bytes written so far. With `verify`, each blob is hashed on the way.

    Raises BlobChanged, StorageUnreadable; OSError of the sink.
    """
    done = 0
    with closing(ThreadPool(2)) as threads:
        async with aclosing(BundleReader(layout, store, threads if verify else None).parts(0, None)) as parts:
            async for part in parts:
                for chunk in _chunks(part):
                    if isinstance(chunk, bytes):
                        await threads.run(sink.write, chunk)
                        done += len(chunk)
                    else:
                        await threads.run(sink.copy, chunk)
                        done += chunk.length
                    progress(done)


class Output:
    """A pipe, or a file that was opened for writing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._by_kernel = True
        # It is no pipe, or this user's pipes are too large together already.
        with contextlib.suppress(OSError):
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < _PIPE:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                self._wait()

    def copy(self, part: FileSlice) -> None:
        offset, end = part.offset, part.offset + part.length
        while offset < end:
            if self._by_kernel:
                try:
                    count = os.sendfile(self._fd, part.fd, offset, end - offset)
                except OSError as error:
                    if error.errno == errno.EAGAIN:
                        self._wait()
                    elif error.errno in _NOT_BY_KERNEL:
                        self._by_kernel = False
                    else:
                        raise
                    continue
            else:
                data = os.pread(part.fd, min(_BUFFER, end - offset), offset)
                self.write(data)
                count = len(data)
            if count == 0:
                raise BlobChanged(
                    "a blob has become shorter in the cache while it was read: pull its image again, then export again"
                )
            offset += count

    def _wait(self) -> None:
        """For a pipe whose other owner made it non-blocking."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll()


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
