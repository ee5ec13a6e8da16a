"""A blob's body, as it comes."""

from __future__ import annotations

import asyncio

import aiohttp
from prometheus_client import Counter

from mirror.errors import UpstreamCut, UpstreamStalled
from mirror.upstream.bodies import Body, Buffers
from mirror.upstream.health import Lease
from mirror.upstream.transport import shown


class BlobStream:
    """The bytes of a blob from `start` on. Whoever holds it closes it."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        size: int | None,
        start: int,
        stall: float,
        pulled: Counter,
        endpoint: str,
        lease: Lease,
        buffers: Buffers,
    ) -> None:
        self.size = size
        """Bytes of the whole blob; None when upstream did not say."""
        self.start = start
        """Offset of the first byte: 0 when upstream ignored the Range."""
        self.endpoint = endpoint
        """Who sends it."""
        self._response = response
        self._lease = lease
        self._stall = stall
        self._pulled = pulled
        self._body = Body.take(response, buffers)

    async def read(self) -> bytes | memoryview:
        """The next bytes; waits for them up to the stall timeout. Empty at the end. They are good until the next `read`, or `aclose`.

        Raises UpstreamCut, UpstreamStalled.
        """
        try:
            data = await self._next()
        except TimeoutError:
            raise UpstreamStalled(f"{shown(self._response.url)} sent nothing for {self._stall:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamCut(f"{shown(self._response.url)} broke off: {error or type(error).__name__}") from None
        self._lease.taken += len(data)
        self._pulled.inc(len(data))
        return data

    async def _next(self) -> bytes | memoryview:
        if self._body is not None:
            if self._body.ready:
                return await self._body.read()
            async with asyncio.timeout(self._stall):
                return await self._body.read()
        content = self._response.content
        if (error := content.exception()) is not None:
            # aiohttp raises before it gives out what came ahead of the break; fetching those bytes again would be a waste.
            if data := content._read_nowait(-1):
                return data
            raise error
        async with asyncio.timeout(self._stall):
            return await content.readany()

    async def aclose(self) -> None:
        """Gives the connection back when all of it was read, and closes it otherwise. Never raises."""
        if self._body.complete if self._body is not None else self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
        if self._body is not None:
            self._body.close()
        self._lease.end()
