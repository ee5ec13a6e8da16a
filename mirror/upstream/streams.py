"""A blob's body, as it comes."""

from __future__ import annotations

import h11
from prometheus_client import Counter

from mirror.errors import UpstreamCut, UpstreamStalled
from mirror.upstream.health import Lease
from mirror.upstream.receiver import Response
from mirror.upstream.transport import shown


class BlobStream:
    """The bytes of a blob from `start` on. Whoever holds it closes it."""

    def __init__(
        self, response: Response, size: int | None, start: int, stall: float, pulled: Counter, endpoint: str, lease: Lease
    ) -> None:
        """`stall` is how many seconds may pass without a byte."""
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

    async def read(self) -> memoryview:
        """The next bytes; waits for them up to the stall timeout. Empty at the end. They are good until the next `read`, or `aclose`.

        Raises UpstreamCut, UpstreamStalled.
        """
        try:
            data = await self._response.read(self._stall)
        except TimeoutError:
            raise UpstreamStalled(f"{shown(self._response.url)} sent nothing for {self._stall:g} s") from None
        except (OSError, h11.RemoteProtocolError) as error:
            raise UpstreamCut(f"{shown(self._response.url)} broke off: {error or type(error).__name__}") from None
        self._lease.taken += len(data)
        self._pulled.inc(len(data))
        return data

    async def aclose(self) -> None:
        """Gives the connection back when all of it was read, and closes it otherwise. Never raises."""
        await self._response.aclose()
        self._lease.end()
