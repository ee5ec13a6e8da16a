"""Bytes to a client: with sendfile, straight from the cache's file to the socket.

asyncio's own `loop.sendfile` goes through the event loop once for every piece the socket takes; here each turn sends until the socket is full, which measures
1.5 times as fast. It works on a duplicate of the socket's descriptor, since the loop keeps its own to itself.
"""

from __future__ import annotations

import asyncio
import os

from mirror.downloads.parts import FileSlice

_TURN = 4 * 1024 * 1024
"""Bytes after which other connections get their turn."""
_READ = 256 * 1024
_STUCK_AFTER = 300.0
"""Seconds after which a client that takes nothing at all is given up."""


class FileSender:
    """Sends file slices on one connection. Its `close` must be called."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = os.dup(transport.get_extra_info("socket").fileno())

    async def send(self, part: FileSlice) -> None:
        """Returns when the kernel has taken all of it. Raises ConnectionError, TimeoutError, and OSError when the file is shorter."""
        done: asyncio.Future[None] = self._loop.create_future()
        position, end = part.offset, part.offset + part.length

        def turn() -> None:
            nonlocal position
            limit = min(end, position + _TURN)
            try:
                while position < limit:
                    sent = os.sendfile(self._socket, part.fd, position, limit - position)
                    if sent == 0:
                        raise OSError("the cached file is shorter than it was")
                    position += sent
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if not done.done():
                    done.set_exception(error)
                return
            if position == end and not done.done():
                done.set_result(None)

        turn()
        if done.done():
            done.result()
            return
        self._loop.add_writer(self._socket, turn)
        try:
            seen = -1
            while not done.done():
                if position == seen:
                    raise TimeoutError("the client has taken nothing for a long time")
                seen = position
                await asyncio.wait([done], timeout=_STUCK_AFTER)
            done.result()
        finally:
            self._loop.remove_writer(self._socket)
            if not done.cancel():
                # Nobody may be left to hear of it: that is no "exception was never retrieved".
                done.exception()

    def close(self) -> None:
        os.close(self._socket)


def read_slice(part: FileSlice) -> bytes:
    """The bytes of a small slice. Raises OSError when the file is shorter."""
    data = os.pread(part.fd, part.length, part.offset)
    if len(data) != part.length:
        raise OSError("the cached file is shorter than it was")
    return data


def pieces(part: FileSlice) -> list[FileSlice]:
    """A slice in pieces that are fit to pass through memory, for connections that sendfile cannot serve."""
    return [
        FileSlice(part.fd, offset, min(_READ, part.offset + part.length - offset))
        for offset in range(part.offset, part.offset + part.length, _READ)
    ]
