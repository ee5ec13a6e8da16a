"""The stream of a blob's bytes from upstream."""

from __future__ import annotations

import sys

import h11
from prometheus_client import Counter

from mirror.errors import UpstreamCut, UpstreamStalled
from mirror.upstream.health import Lease
from mirror.upstream.rates import Limiter, Share
from mirror.upstream.receiver import Response
from mirror.upstream.transport import source


class BlobStream:
    """The bytes of a blob from `start` on. The caller closes it."""

    def __init__(
        self,
        response: Response,
        size: int | None,
        start: int,
        stall: float,
        pulled: Counter,
        endpoint: str,
        lease: Lease,
        limiter: Limiter,
        share: Share,
    ) -> None:
        """`stall` is the longest time without a byte, in seconds; time spent waiting for the rate cap is not part of it."""
        self.size = size
        """Bytes of the whole blob; None if upstream did not state it."""
        self.start = start
        """Offset of the first byte; 0 if upstream ignored the Range."""
        self.endpoint = endpoint
        """The name of the endpoint that sends it."""
        self._response = response
        self._lease = lease
        self._stall = stall
        self._pulled = pulled
        self._limiter = limiter
        self._share = share
        self._unread: int | None = 0
        """Bytes received ahead for which the cap was charged; None after a read without a cap."""

    async def read(self, wanted: int = sys.maxsize) -> memoryview:
        """Returns the next bytes, empty at the end; waits up to the stall timeout. They are valid until the next `read` or `aclose`.

        No more than the next `wanted` bytes are received, unless an earlier call asked for more.

        Raises UpstreamCut, UpstreamStalled.
        """
        if self._limiter.capped(self._share.registry):
            data = await self._receive_in_turn(wanted)
        else:
            data = await self._receive(wanted)
            self._unread = None
            self._lease.taken += len(data)
        self._pulled.inc(len(data))
        return data

    async def _receive_in_turn(self, wanted: int) -> memoryview:
        """Receives as much as the cap allows, when it allows it. What had to wait says nothing of the endpoint's throughput."""
        lease = self._lease
        lease.pause()
        turn = await self._limiter.turn(self._share)
        if not turn.delayed:
            lease.resume()
        data = memoryview(b"")
        try:
            data = await self._receive(min(turn.bytes or wanted, wanted), ahead=not turn.bytes)
        finally:
            # What the kernel has received ahead was sent as well, and counts.
            before, self._unread = self._unread, self._response.unread
            self._limiter.received(turn, len(data), 0 if before is None else self._unread - before)
            if turn.delayed:
                lease.resume()
            else:
                lease.taken += len(data)
        return data

    async def _receive(self, wanted: int, *, ahead: bool = True) -> memoryview:
        """Receives the next bytes, as `Response.read` does."""
        try:
            return await self._response.read(self._stall, wanted, ahead=ahead)
        except TimeoutError:
            raise UpstreamStalled(f"{source(self._response)} sent nothing for {self._stall:g} s") from None
        except (OSError, h11.RemoteProtocolError) as error:
            raise UpstreamCut(f"{source(self._response)} broke off: {error or type(error).__name__}") from None

    async def aclose(self) -> None:
        """Returns the connection to the pool if the body was read to its end, and closes it otherwise. Never raises."""
        await self._response.aclose()
        self._lease.end()
