"""Reads one stretch of a blob from upstream, over as many connections as that takes.

When a connection breaks or stalls, the next one asks for the missing bytes with a closed Range (RFC 9110, section 14.2), at the endpoint that upstream
chooses. The error is raised only after several connections in a row have brought next to nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Protocol

from mirror.backoff import pause
from mirror.errors import (
    RangeIgnored,
    UpstreamCut,
    UpstreamError,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamStalled,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.manifests import Descriptor

_PASSING = (UpstreamCut, UpstreamStalled, UpstreamUnreachable, UpstreamTimeout, UpstreamLimited, UpstreamInvalid)
"""Errors after which another connection is tried, perhaps to another endpoint."""
_TRIES = 6
"""Connections in a row that may fail before the error is raised."""
_PROGRESS = 64 * 1024
"""Bytes that a connection must bring for its failure not to count."""


class Stream(Protocol):
    """The bytes of a blob from `start` on.

    `size` is the size of the whole blob, None if upstream does not state it; `endpoint` names the server. What `read` returns is valid until its next call.
    After `wanted` more bytes nothing is read: what is received beyond them is lost.
    """

    size: int | None
    start: int
    endpoint: str

    async def read(self, wanted: int) -> bytes | memoryview: ...
    async def aclose(self) -> None: ...


class Source(Protocol):
    """A blob upstream."""

    @property
    def connections(self) -> int:
        """The number of connections that may fetch it at once."""
        ...

    @property
    def ranges(self) -> bool:
        """False where upstream is known not to answer requests with a Range."""
        ...

    @property
    def single(self) -> bool:
        """True where it comes from a mirror that downloads it itself: a second connection brings nothing sooner, unless it is for bytes out of order."""
        ...

    @property
    def least(self) -> int:
        """Connections that a blob for which a client waits has at least, if it is large enough: more than 1 where many read from the same server as much as they can."""
        ...

    @property
    def throttled(self) -> bool:
        """True if a cap on the rate, not upstream, makes it slow."""
        ...

    @property
    def capped(self) -> bool:
        """True if a cap on the rate holds for it."""
        ...

    def attend(self, wanted: bool) -> None:
        """Tells whether a client waits for the blob."""
        ...

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        """Opens ``[start, stop)``; ``(0, None)`` is the whole blob, without a Range.

        A `spare` connection is opened only within upstream's bounds on connections. Another endpoint than `avoid` is preferred. Raises Unknown, Denied,
        UpstreamError.
        """
        ...

    async def describe(self) -> Descriptor:
        """Asks for size and type, without the bytes. Raises Unknown, Denied, UpstreamError."""
        ...

    def reject(self) -> bool:
        """Reports that the bytes have another digest. True where another try may bring other bytes."""
        ...


class Download:
    """The bytes ``[start, stop)`` of one blob, in order."""

    def __init__(
        self,
        source: Source,
        start: int = 0,
        stop: int | None = None,
        size: int | None = None,
        *,
        spare: bool = False,
        avoid: str | None = None,
        superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        """A `spare` download is one that the blob's other connections can do without. Where `superseded` returns True, no more connections are opened."""
        self.position = start
        """The offset of the next byte that `read` returns."""
        self.size = size
        """The size of the whole blob in bytes; known, if at all, once `open` has returned."""
        self.endpoint: str | None = None
        """The endpoint that sent the last bytes."""
        self._source = source
        self._stop = stop
        self._spare = spare
        self._avoid = avoid
        self._superseded = superseded
        self._stream: Stream | None = None
        self._skip = 0
        self._failures = 0
        self._gained = 0

    async def open(self) -> None:
        """Connects, once. Raises what upstream raises, RangeIgnored, UpstreamInvalid."""
        stop = self._stop
        if stop is None and self.position > 0:
            stop = self.size
        stream = await self._source.open(self.position, stop, spare=self._spare, avoid=self._avoid)
        if self._spare and stream.start < self.position:
            await stream.aclose()
            raise RangeIgnored("upstream ignored a Range")
        if stream.start > self.position or (self.size is not None and stream.size not in (None, self.size)):
            await stream.aclose()
            raise UpstreamInvalid(f"upstream answered with another blob or range (size {stream.size}, from {stream.start})")
        if self.size is None:
            self.size = stream.size
        self._stream, self._skip, self._gained = stream, self.position - stream.start, 0
        self.endpoint = stream.endpoint

    async def read(self, wanted: int = sys.maxsize) -> bytes | memoryview:
        """Returns the next bytes, valid until the next `read` or `aclose`; none at the end of the stretch.

        The caller reads no more than `wanted` bytes from here on. There may be more of them, where it wanted more before.

        Raises UpstreamError when no more connections are tried; Unknown and Denied at once.
        """
        while self._stop is None or self.position < self._stop:
            try:
                if self._stream is None:
                    await self.open()
                assert self._stream is not None
                end = self._stop if self._stop is not None else self.size
                left = wanted if self._stop is None else min(wanted, self._stop - self.position)
                data = await self._stream.read(left + self._skip)
                if not data and end is not None and self.position < end:
                    raise UpstreamCut(f"upstream ended the blob at byte {self.position} of {end}")
            except _PASSING as error:
                await self._recover(error)
                continue
            if not data:
                self.size = self.position if self.size is None else self.size
                return b""
            if self._skip:
                # Upstream ignored the Range, and sends the blob from its beginning.
                passed = min(self._skip, len(data))
                self._skip -= passed
                data = data[passed:]
                if not data:
                    continue
            if self._stop is not None and self.position + len(data) > self._stop:
                data = data[: self._stop - self.position]
            self.position += len(data)
            self._gained += len(data)
            return data
        return b""

    async def _recover(self, error: UpstreamError) -> None:
        await self.aclose()
        if isinstance(error, RangeIgnored):
            raise error
        self._avoid = self.endpoint
        self._failures = 0 if self._gained >= _PROGRESS else self._failures + 1
        if self._gained and self._source.throttled:
            # What the cap makes slow brings little before upstream closes the connection.
            self._failures = min(self._failures, _TRIES - 1)
        self._gained = 0
        if self._failures >= _TRIES:
            raise error
        if self._failures:
            await asyncio.sleep(pause(self._failures - 1, error.retry_after if isinstance(error, UpstreamLimited) else None))
        if self._superseded():
            raise error

    async def aclose(self) -> None:
        """Closes the connection."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.aclose()
