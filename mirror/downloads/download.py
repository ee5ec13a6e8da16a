"""One stretch of a blob from upstream, as a stream that outlives cuts and stalls.

When the connection breaks, the next one asks for what is missing with a closed Range, on whichever endpoint upstream finds best; only when several
tries in a row bring nothing is the error raised.
"""

from __future__ import annotations

import asyncio
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
"""What another connection, perhaps to another endpoint, may mend."""
_TRIES = 6
"""Failures in a row that end a download."""
_PROGRESS = 64 * 1024
"""Bytes that a connection must bring for its end not to count as one of them."""


class Stream(Protocol):
    """The bytes of a blob from `start` on.

    `size` is the whole blob's, None when upstream did not say; `endpoint` names who sends it. What `read` gives is good until it is called again.
    """

    size: int | None
    start: int
    endpoint: str

    async def read(self) -> bytes | memoryview: ...
    async def aclose(self) -> None: ...


class Source(Protocol):
    """A blob, as upstream has it."""

    @property
    def connections(self) -> int:
        """How many may fetch it at once."""
        ...

    @property
    def ranges(self) -> bool:
        """False where upstream is known not to answer them."""
        ...

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        """Opens ``[start, stop)``; ``(0, None)`` is all of it, without a Range. A `spare` one only within upstream's bounds, rather not at `avoid`."""
        ...

    async def describe(self) -> Descriptor:
        """What upstream says of it, without the bytes. Raises Unknown, Denied, UpstreamError."""
        ...

    def reject(self) -> bool:
        """The bytes were wrong. True when another try may bring others."""
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
    ) -> None:
        """A `spare` one is given up where the blob's other connections had better go on without it."""
        self.position = start
        """The offset of the next byte that `read` gives."""
        self.size = size
        """Of the whole blob; known, if at all, once `open` has returned."""
        self.endpoint: str | None = None
        """Who sent the last bytes."""
        self._source = source
        self._stop = stop
        self._spare = spare
        self._avoid = avoid
        self._stream: Stream | None = None
        self._skip = 0
        self._failures = 0
        self._gained = 0

    async def open(self) -> None:
        """Connects. Raises what upstream raises: a first answer that fails is not tried again here."""
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

    async def read(self) -> bytes | memoryview:
        """The next bytes, good until the next `read` or `aclose`; empty at the end of the stretch.

        Raises UpstreamError once the tries are used up, and Unknown and Denied at once.
        """
        while True:
            try:
                if self._stream is None:
                    await self.open()
                assert self._stream is not None
                data = await self._stream.read()
                end = self._stop if self._stop is not None else self.size
                if not data and end is not None and self.position < end:
                    raise UpstreamCut(f"upstream ended the blob at byte {self.position} of {end}")
            except _PASSING as error:
                await self._recover(error)
                continue
            if not data:
                self.size = self.position if self.size is None else self.size
                return b""
            if self._skip:
                # The upstream ignored the Range and began at the beginning.
                passed = min(self._skip, len(data))
                self._skip -= passed
                data = data[passed:]
                if not data:
                    continue
            if self._stop is not None and self.position + len(data) > self._stop:
                data = data[: self._stop - self.position]
                if not data:
                    return b""
            self.position += len(data)
            self._gained += len(data)
            return data

    async def _recover(self, error: UpstreamError) -> None:
        await self.aclose()
        if isinstance(error, RangeIgnored):
            raise error
        self._avoid = self.endpoint
        self._failures = 0 if self._gained >= _PROGRESS else self._failures + 1
        self._gained = 0
        if self._failures >= _TRIES:
            raise error
        await asyncio.sleep(pause(self._failures, error.retry_after if isinstance(error, UpstreamLimited) else None))

    async def aclose(self) -> None:
        """Lets go of the connection."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.aclose()
