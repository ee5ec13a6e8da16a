"""Sends bodies to clients: slices of files with sendfile(2), bodies in memory in pieces.

asyncio's `loop.sendfile` returns to the event loop for every piece that the socket takes. `FileSender` sends until the socket is full, which was measured to be
1.5 times as fast. It uses a duplicate of the socket's descriptor, since asyncio does not let others wait for its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Awaitable, Callable

from aiohttp import web

from mirror.errors import MirrorError
from mirror.storage.slices import FileSlice, Part, SliceUnreadable

_NETWORK = (
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENOBUFS,
    errno.ENOTCONN,
    errno.EBADF,
)
"""Errors of a socket that are no ConnectionError."""
_BATCH = 4 * 1024 * 1024
"""Bytes after which the event loop serves other connections."""
_READ = 256 * 1024
_STUCK_AFTER = 300.0
"""Seconds after which the connection of a client that reads nothing is ended."""
_PIECE = 64 * 1024
"""Bytes of a body in memory that are handed to the transport at a time: it copies what the kernel does not take at once."""
_PIECE_TIMEOUT = 60.0
"""Seconds for a client to take a piece; what it does not read is held in memory."""


class FileSender:
    """Sends file slices on one connection. Its `close` must be called."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = os.dup(transport.get_extra_info("socket").fileno())
        self.sent = 0
        """Bytes of the last slice that the kernel has taken."""

    async def send(self, part: FileSlice) -> None:
        """Sends a slice; returns when the kernel has all of it.

        Raises ConnectionError or TimeoutError because of the client, SliceUnreadable if the file is too short or cannot be read, MirrorError by the slice's check.
        """
        self.sent = 0
        done: asyncio.Future[None] = self._loop.create_future()
        position, end = part.offset, part.offset + part.length

        def send_batch() -> None:
            nonlocal position
            limit = min(end, position + _BATCH)
            try:
                if part.check is not None:
                    part.check()
                while position < limit:
                    sent = os.sendfile(self._socket, part.fd, position, limit - position)
                    if sent == 0:
                        raise SliceUnreadable("the cached file is shorter than it was", position)
                    position += sent
                    self.sent += sent
            except MirrorError as error:
                if not done.done():
                    done.set_exception(error)
                return
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if not done.done():
                    done.set_exception(error if _is_of_the_socket(error) else SliceUnreadable(str(error), position))
                return
            if position == end and not done.done():
                done.set_result(None)

        send_batch()
        if done.done():
            done.result()
            return
        self._loop.add_writer(self._socket, send_batch)
        try:
            seen = -1
            while not done.done():
                if position == seen:
                    raise TimeoutError(f"the client has read nothing for {_STUCK_AFTER:g} s")
                seen = position
                await asyncio.wait([done], timeout=_STUCK_AFTER)
            done.result()
        finally:
            self._loop.remove_writer(self._socket)
            if not done.cancel():
                # If nobody waits for the result, asyncio would log "exception was never retrieved".
                done.exception()

    def close(self) -> None:
        os.close(self._socket)


async def send_in_pieces(request: web.BaseRequest, response: web.StreamResponse, body: bytes) -> web.StreamResponse:
    """Sends a response whose `body` is in memory and not copied. Ends the connection of a client that does not read it.

    Returns the response that was sent. Raises ConnectionError where the client has left.
    """
    sent = web.StreamResponse(status=response.status, headers=response.headers)
    sent.content_length = len(body)
    writer = await sent.prepare(request)
    if writer is None or request.method == "HEAD":
        return sent
    rest = memoryview(body)
    try:
        while rest:
            async with asyncio.timeout(_PIECE_TIMEOUT):
                await sent.write(rest[:_PIECE])
                await writer.drain()
            rest = rest[_PIECE:]
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"the client has not read {len(rest)} bytes of an answer for {_PIECE_TIMEOUT:g} s") from None
    return sent


def read_slice(part: FileSlice) -> bytes:
    """Reads a small slice. Raises SliceUnreadable if the file is too short or cannot be read, MirrorError by its check."""
    if part.check is not None:
        part.check()
    try:
        data = os.pread(part.fd, part.length, part.offset)
    except OSError as error:
        raise SliceUnreadable(str(error), part.offset) from error
    if len(data) != part.length:
        raise SliceUnreadable("the cached file is shorter than it was", part.offset)
    return data


async def send_each(parts: AsyncGenerator[Part, None], send: Callable[[Part], Awaitable[None]]) -> None:
    """Sends all parts. If a slice cannot be read, throws SliceUnreadable into `parts` and sends what they yield instead."""
    part = await anext(parts, None)
    while part is not None:
        try:
            await send(part)
        except SliceUnreadable as error:
            try:
                part = await parts.athrow(error)
            except StopAsyncIteration:
                return
        else:
            part = await anext(parts, None)


def pieces(part: FileSlice) -> list[FileSlice]:
    """Cuts a slice into pieces small enough to be read into memory, for connections that sendfile cannot serve."""
    return [
        FileSlice(part.fd, offset, min(_READ, part.offset + part.length - offset), part.check)
        for offset in range(part.offset, part.offset + part.length, _READ)
    ]


def _is_of_the_socket(error: OSError) -> bool:
    """False for an error of sendfile(2) that comes from the file: its disk fails, or its server has gone."""
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _NETWORK
