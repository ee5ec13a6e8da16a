"""The body of a response, past aiohttp: from the socket straight into memory that is used again and again.

aiohttp's parser copies every byte once more into memory that is new each time, which is a fifth of what a cold download costs. Where it has told how long the
body is, nothing is left to parse: its connection is read by a protocol of ours for as long as the body lasts, through TLS as well, and then given back to it.
"""

from __future__ import annotations

import asyncio
import mmap

import aiohttp
from aiohttp.client_proto import ResponseHandler

SIZE = 1024 * 1024
"""Bytes of a buffer. Each body has two: one is filled while the other is worked on."""
_SHORTEST, _LONGEST = 0.002, 0.025
"""Seconds between two reads, unless a buffer is full: to hand over little costs as much as to hand over much, so what comes slowly is gathered longer."""
_KEPT = 16
"""Buffers that are kept for later bodies: to touch new memory costs as much as to fill it."""
_SCRATCH = memoryview(bytearray(64 * 1024))
"""For what still comes when nobody wants it."""


class Buffers:
    """Memory for bodies."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        return self._free.pop() if self._free else memoryview(mmap.mmap(-1, SIZE + 1))

    def give(self, *buffers: memoryview) -> None:
        """Nobody may look at them any more."""
        self._free += buffers
        del self._free[_KEPT:]


class Body(asyncio.BufferedProtocol):
    """What is still to come of a body whose length is known. Whoever takes it closes it."""

    @classmethod
    def take(cls, response: aiohttp.ClientResponse, buffers: Buffers) -> Body | None:
        """Takes a body out of aiohttp's hands; None where it had better be left there.

        That is one that is not as its Content-Length says on the connection (RFC 9112, section 6.3), has come already, or of which aiohttp holds bytes back.
        """
        connection, content, length = response.connection, response.content, response.content_length
        if connection is None or connection.transport is None or connection.protocol is None or length is None:
            return None
        if "Transfer-Encoding" in response.headers or content.is_eof() or content.exception() is not None:
            return None
        try:
            if connection.protocol._reading_paused or connection.protocol._tail:
                return None
            return cls(connection.transport, connection.protocol, content, length, buffers)
        except AttributeError:
            # An aiohttp that is made otherwise within: then it reads, as well as it can.
            return None

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: ResponseHandler,
        content: aiohttp.StreamReader,
        length: int,
        buffers: Buffers,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._protocol = protocol
        self._content = content
        self._left = length - content.total_bytes
        """Bytes that the connection is still to bring."""
        self._first = content.read_nowait(-1)
        self._buffers = buffers
        self._filling = buffers.take()
        self._filled = 0
        self._lent = buffers.take()
        self._paused = False
        self._lost: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._gather = _SHORTEST
        self._fast = False
        self._due = 0.0
        """From when on little is better than waiting for more."""
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        # An earlier response of this connection, that had come whole, may be read only now: aiohttp would have the connection read on for it.
        protocol._buffer_paused = True
        transport.set_protocol(self)

    @property
    def ready(self) -> bool:
        """True when `read` need not wait."""
        return bool(self._first or self._filled or not self._left or self._lost is not None)

    @property
    def complete(self) -> bool:
        """True when all of it has come, read or not: the connection is aiohttp's again."""
        return not self._left

    async def read(self) -> bytes | memoryview:
        """All that has come since the last time; waits for some. Empty at the end.

        It is good until the next `read`, or `close`. Raises ConnectionError when the connection broke off before the end.
        """
        if self._first:
            first, self._first = self._first, b""
            return first
        if not self._worth_it():
            self._waiter = self._loop.create_future()
            self._wake()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._filled:
            if self._left and self._lost is not None:
                raise self._lost
            return b""
        ready = self._filling[: self._filled]
        self._filling, self._lent, self._filled = self._lent, self._filling, 0
        self._fast = len(ready) > SIZE // 2
        if self._fast:
            self._gather = max(self._gather / 2, _SHORTEST)
        elif len(ready) < SIZE // 4:
            self._gather = min(2 * self._gather, _LONGEST)
        self._due = self._loop.time() + self._gather
        self._resume()
        return ready

    def close(self) -> None:
        """Gives the memory back. What has not come of the body is not wanted any more: the caller closes the connection."""
        if self._open:
            self._open = False
            if self._timer is not None:
                self._timer.cancel()
            self._buffers.give(self._filling, self._lent)
            self._resume()

    # ------------------------------------------------------------------ for the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        if not self._open:
            return _SCRATCH
        # One byte more than the body has: nothing may come after it.
        return self._filling[self._filled : min(SIZE, self._filled + self._left) + 1]

    def buffer_updated(self, nbytes: int) -> None:
        if not self._open:
            return
        self._filled += min(nbytes, self._left)
        if nbytes > self._left:
            # Else what comes after would be taken for the answer to the next request.
            self._protocol.force_close()
        self._left = max(self._left - nbytes, 0)
        if not self._left:
            self._protocol._buffer_paused = False
            self._transport.set_protocol(self._protocol)
            # Its sign that the response is complete, and the connection free for the next request.
            self._content.feed_eof()
        elif self._filled >= SIZE or (self._fast and self._loop.time() < self._due):
            # Full, or soon to be: the kernel gathers it at less cost. Not for what comes slowly: it may do so because the kernel's buffer is small.
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError("the other side closed the connection")
        # aiohttp keeps the books on connections.
        self._protocol.connection_lost(exc)
        self._wake()

    # ------------------------------------------------------------------

    def _worth_it(self) -> bool:
        """True when what is here is worth handing over, or nothing more will come."""
        if self._filled >= SIZE or not self._left or self._lost is not None:
            return True
        return self._filled > 0 and self._loop.time() >= self._due

    def _wake(self) -> None:
        """Lets the reader go on, now or when it is time."""
        if self._waiter is None or self._waiter.done():
            return
        if self._worth_it():
            self._waiter.set_result(None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._filled and self._timer is None:
            self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._filled < SIZE:
            # Full it may have become since the timer was set, and then there is nowhere to read to.
            self._resume()
        # Once more through the loop, which reads on first.
        self._loop.call_soon(self._wake)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
