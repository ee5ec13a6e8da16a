"""A blob's body, as it comes."""

from __future__ import annotations

import asyncio

import aiohttp
from prometheus_client import Counter

from mirror.errors import UpstreamCut, UpstreamStalled
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
        self._broken: UpstreamCut | None = None

    @property
    def ready(self) -> bool:
        """True when `read` need not wait."""
        return self._lease.taken < self._response.content.total_bytes

    async def read(self) -> bytes:
        """The next bytes, as they came; waits for them up to the stall timeout. Empty at the end. Raises UpstreamCut, UpstreamStalled.

        Pieces are not joined, which would copy them: whoever wants more of them at once asks while they are `ready`.
        """
        if self._broken is not None:
            raise self._broken
        content = self._response.content
        try:
            async with asyncio.timeout(None if self.ready else self._stall):
                data, end_of_chunk = await content.readchunk()
                while not data and end_of_chunk:
                    data, end_of_chunk = await content.readchunk()
        except TimeoutError:
            raise UpstreamStalled(f"{shown(self._response.url)} sent nothing for {self._stall:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            self._broken = UpstreamCut(f"{shown(self._response.url)} broke off: {error or type(error).__name__}")
            # aiohttp raises before it gives out what came ahead of the break; fetching those bytes again would be a waste.
            data = content._read_nowait(-1)
            if not data:
                raise self._broken from None
        self._lease.taken += len(data)
        self._pulled.inc(len(data))
        return data

    async def aclose(self) -> None:
        """Gives the connection back when all of it was read, and closes it otherwise. Never raises."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
        self._lease.end()
