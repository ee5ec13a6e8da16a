"""Where an upstream may send us: redirects and token realms are checked before anything goes there.

From https never to http; from a public address never to a private or loopback one. An endpoint that is itself private or loopback may send us anywhere.
"""

from __future__ import annotations

import ssl
import time

import aiohttp
from yarl import URL

from mirror.errors import TargetRefused
from mirror.upstream.receiver import Response
from mirror.upstream.transport import Transport, shown

_PRIVACY_KEPT = 60.0


class Guard:
    """Sends requests on behalf of one endpoint."""

    def __init__(self, transport: Transport, base: URL, tls: ssl.SSLContext | None) -> None:
        self._transport = transport
        self._base = base
        self._tls = tls
        self._private: tuple[float, bool] | None = None

    async def request(
        self, method: str, url: URL, headers: dict[str, str], timeout: float | None = None
    ) -> aiohttp.ClientResponse:
        """Raises as Transport.request does, and TargetRefused."""
        public_only = await self._check(url)
        return await self._transport.request(method, url, headers, public_only=public_only, tls=self._tls, timeout=timeout)

    async def receive(self, url: URL, headers: dict[str, str], timeout: float | None = None) -> Response:
        """As `request`, for a GET whose body is received in a thread."""
        public_only = await self._check(url)
        return await self._transport.receive(url, headers, public_only=public_only, tls=self._tls, timeout=timeout)

    async def _check(self, url: URL) -> bool:
        """True where only public addresses may be connected to. Raises TargetRefused."""
        if same_origin(url, self._base):
            return False
        if url.scheme not in ("http", "https") or not url.host:
            raise TargetRefused(f"{shown(self._base)} points to something that is no web address")
        if url.user is not None or url.password is not None:
            raise TargetRefused(f"{shown(self._base)} points to a URL with user or password: {shown(url)}")
        if self._base.scheme == "https" and url.scheme == "http":
            raise TargetRefused(f"{shown(self._base)} points from https to http: {shown(url)}")
        return not await self._is_private()

    async def _is_private(self) -> bool:
        if self._private is None or time.monotonic() - self._private[0] > _PRIVACY_KEPT:
            self._private = time.monotonic(), await self._transport.is_private(self._base)
        return self._private[1]


def same_origin(one: URL, other: URL) -> bool:
    """True where scheme, host and port are the same: the only case in which Authorization goes along (RFC 9110, section 15.4)."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
