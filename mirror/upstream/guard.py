"""Checks the targets of redirects and token realms before the mirror connects to them.

They must not lead from https to http, nor from a public address to a private or loopback one. A private upstream may lead to any host, but a public host on the
way may not lead to a private one.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence

from yarl import URL

from mirror.errors import TargetRefused
from mirror.upstream.proxies import Way
from mirror.upstream.receiver import Response
from mirror.upstream.transport import Transport, shown
from mirror.upstream.urls import same_origin

_PRIVACY_KEPT = 60.0
_MOST_HOSTS = 1000


class Guard:
    """Sends requests on behalf of one endpoint."""

    def __init__(self, transport: Transport, base: URL, tls: ssl.SSLContext | None, way: Way | None = None) -> None:
        """`base` is the endpoint's URL; `tls` is None for the system's certificates; `way` is None for the transport's way out.

        Token services and the targets of redirects are reached by the same way as the endpoint.
        """
        self.base = base
        self._transport = transport
        self._tls = tls
        self._way = way
        self._private: dict[tuple[str | None, int | None], tuple[float, bool]] = {}

    async def request(
        self,
        method: str,
        via: Sequence[URL],
        url: URL,
        headers: dict[str, str],
        timeout: float | None = None,
        registry: str | None = None,
    ) -> Response:
        """Sends a request to `url`, which the chain of URLs `via` led to; `via` is empty for the endpoint's own URLs.

        `registry` is as for Transport.request.

        Raises TargetRefused, and whatever Transport.request raises.
        """
        public_only = await self._check(via, url)
        return await self._transport.request(
            method, url, headers, public_only=public_only, tls=self._tls, timeout=timeout, way=self._way, registry=registry
        )

    async def _check(self, via: Sequence[URL], url: URL) -> bool:
        """Returns True if only public addresses may be connected to. Raises TargetRefused."""
        if not via:
            return False
        last = shown(via[-1])
        if url.user is not None or url.password is not None:
            raise TargetRefused(f"{last} points to a URL with user or password: {shown(url)}")
        if all(same_origin(one, self.base) for one in (*via, url)):
            return False
        if url.scheme == "http" and any(one.scheme == "https" for one in via):
            raise TargetRefused(f"{last} points from https to http: {shown(url)}")
        return not all([await self._is_private(one) for one in via])

    async def _is_private(self, url: URL) -> bool:
        key = url.host, url.port
        known = self._private.get(key)
        if known is None or time.monotonic() - known[0] > _PRIVACY_KEPT:
            if len(self._private) >= _MOST_HOSTS:
                self._private.clear()
            known = self._private[key] = time.monotonic(), await self._transport.is_private(url, self._way)
        return known[1]
