"""Follows redirects (RFC 9110, section 15.4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from yarl import URL

from mirror.errors import UpstreamInvalid
from mirror.upstream.receiver import Response
from mirror.upstream.transport import shown
from mirror.upstream.urls import parse_url

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST = 5


async def follow(url: URL, via: list[URL], send: Callable[[URL], Awaitable[Response]]) -> Response:
    """Returns the first response that is no redirect, and appends the URLs that led to it to `via`.

    Raises what `send` raises; UpstreamInvalid for a redirect without Location, a loop, or too many redirects.
    """
    before = len(via)
    while (response := await send(url)).status in _REDIRECTS:
        location = response.headers.get("Location")
        response.release()
        if location is None:
            raise UpstreamInvalid(f"{shown(url)} redirects without a Location")
        via.append(url)
        url = parse_url(location, shown(url), url)
        if url in via or len(via) - before > _MOST:
            raise UpstreamInvalid(f"{shown(url)} redirects in a loop, or too often")
    return response
