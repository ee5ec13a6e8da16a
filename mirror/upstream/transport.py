"""Requests to upstreams: timeouts, proxies, and which addresses may be connected to. What the HTTP clients raise becomes an UpstreamError here.

Documents are asked for with aiohttp; the bodies of blobs are received in threads (receiver.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import aiohttp
import h11
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from multidict import CIMultiDictProxy
from yarl import URL

from mirror import __version__
from mirror.errors import TargetRefused, UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable
from mirror.upstream import dialing
from mirror.upstream.health import Delivery
from mirror.upstream.receiver import Receiver, Response

REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_READ_BUFFER = 1024 * 1024
_LONGEST_HEADER = 64 * 1024
"""Bytes: signed URLs in Location are long."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    connect: float
    header: float
    """For the whole of a request until its response headers, retries included."""
    stall: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Connections:
    """How many may fetch blobs at once. A blob's first connection is always allowed; those beyond it are bounded."""

    per_blob: int
    per_endpoint: int
    in_all: int


class Answer(Protocol):
    """The head of a response, whichever client has it."""

    @property
    def url(self) -> URL: ...
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    def release(self) -> object:
        """Ends a response whose body nobody reads."""
        ...


class Transport:
    """Two pools of connections: one that goes anywhere, and one that goes to public addresses only."""

    def __init__(self, timeouts: Timeouts, connections: Connections) -> None:
        self.timeouts = timeouts
        self.connections = connections
        self.deliveries: list[Delivery] = []
        """Of all endpoints of all registries."""
        self._proxies = {
            scheme: _proxy(url) for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https")
        }
        self._resolver = ThreadedResolver()
        self._anywhere = self._session(self._resolver)
        self._public_resolver = _PublicOnly(self._resolver)
        self._public = self._session(self._public_resolver)
        self._receiver = Receiver(f"mirror/{__version__}")
        self._tls = ssl.create_default_context()

    def _session(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        # Unlimited: a request that waited here for another's long download would run into its own timeout.
        connector = aiohttp.TCPConnector(limit=0, resolver=resolver, ttl_dns_cache=30, keepalive_timeout=60)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
            headers={"User-Agent": f"mirror/{__version__}", "Accept-Encoding": "identity"},
        )

    async def aclose(self) -> None:
        await self._receiver.aclose()
        await self._anywhere.close()
        await self._public.close()
        await self._resolver.close()

    def active(self) -> int:
        """Connections that are fetching blobs now."""
        return sum(delivery.active for delivery in self.deliveries)

    async def request(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        *,
        public_only: bool = False,
        tls: ssl.SSLContext | None = None,
        timeout: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Sends a request, without following anything, and waits for the response's headers. The caller releases or closes it.

        Raises UpstreamUnreachable, UpstreamTimeout, UpstreamInvalid, TargetRefused.
        """
        proxy = self._proxy(url)
        # A proxy resolves names itself, and may well have a private address of its own.
        session = self._public if public_only and proxy is None else self._anywhere
        extra: dict[str, Any] = {} if tls is None else {"ssl": tls}
        if proxy is not None:
            extra["proxy"], for_proxy = proxy
            # A tunnel is asked for in a request of its own.
            if url.scheme == "https":
                extra["proxy_headers"] = for_proxy
            else:
                headers = {**headers, **for_proxy}
        with _translated(url, public_only):
            async with asyncio.timeout(self.timeouts.header if timeout is None else timeout):
                return await session.request(method, url, headers=headers, allow_redirects=False, **extra)

    async def receive(
        self,
        url: URL,
        headers: dict[str, str],
        *,
        public_only: bool = False,
        tls: ssl.SSLContext | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Sends a GET whose body is received in a thread; otherwise as `request`. The caller releases or closes the response."""
        context = (tls or self._tls) if url.scheme == "https" else None
        if (proxy := self._proxy(url)) is not None:
            route = dialing.proxied(url, *proxy, self._resolver, context, self.timeouts.connect)
        else:
            route = dialing.direct(
                url, self._public_resolver if public_only else self._resolver, context, public_only, self.timeouts.connect
            )
        with _translated(url, public_only):
            async with asyncio.timeout(self.timeouts.header if timeout is None else timeout):
                return await self._receiver.get(url, headers, route)

    def _proxy(self, url: URL) -> tuple[URL, dict[str, str]] | None:
        # Not aiohttp's trust_env: that reads ~/.netrc too, and sends what it finds there.
        proxy = self._proxies.get(url.scheme)
        if proxy is None or urllib.request.proxy_bypass(url.host or ""):
            return None
        return proxy

    async def is_private(self, url: URL) -> bool:
        """True where none of a host's addresses is public. One that cannot be resolved counts as public, which allows less."""
        host = url.host or ""
        if _is_literal(url):
            return not _public(host)
        try:
            async with asyncio.timeout(self.timeouts.connect):
                found = await self._resolver.resolve(host, url.port or 443)
        except (OSError, TimeoutError):
            return False
        return bool(found) and not any(_public(result["host"]) for result in found)


@contextlib.contextmanager
def _translated(url: URL, public_only: bool) -> Iterator[None]:
    """Makes errors of ours of what goes wrong with a request. Raises as Transport.request does."""
    where = shown(url)
    if public_only and _is_literal(url) and not _public(url.host or ""):
        raise TargetRefused(f"an upstream with a public address points to {where}, which is not public")
    try:
        yield
    except aiohttp.ClientConnectorDNSError as error:
        if isinstance(error.os_error, _Refused):
            raise TargetRefused(f"an upstream with a public address points to {where}, which is not public") from None
        raise UpstreamUnreachable(f"{where} cannot be resolved: {error.os_error.strerror or error.os_error}") from None
    except _Refused:
        raise TargetRefused(f"an upstream with a public address points to {where}, which is not public") from None
    except socket.gaierror as error:
        raise UpstreamUnreachable(f"{where} cannot be resolved: {error.strerror or error}") from None
    except (aiohttp.ConnectionTimeoutError, dialing.ConnectTimeout):
        raise UpstreamUnreachable(f"no connection with {where}: it does not answer") from None
    except (TimeoutError, aiohttp.ServerTimeoutError):
        raise UpstreamTimeout(f"{where} did not answer in time") from None
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        raise UpstreamUnreachable(f"no TLS connection with {where}: {_brief(error)}") from None
    except aiohttp.ClientHttpProxyError as error:
        raise UpstreamUnreachable(f"no connection with {where}: the proxy answered {error.status} {error.message}") from None
    except dialing.ProxyUnreachable as error:
        raise UpstreamUnreachable(f"no connection with {where}: {error}") from None
    except aiohttp.ClientConnectorError as error:
        proxied = f"the proxy {error.host}:{error.port}: " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        # aiohttp's words tell of its internals, and hide the cause where there is one: "Connect call failed".
        raise UpstreamUnreachable(f"no connection with {where}: {proxied}{_reason(error.os_error)}") from None
    except (aiohttp.ClientConnectionError, OSError) as error:
        raise UpstreamUnreachable(f"no connection with {where}: {_reason(error)}") from None
    except (aiohttp.InvalidURL, aiohttp.ClientError, h11.ProtocolError, ValueError) as error:
        raise UpstreamInvalid(f"{where} answered with something that is not HTTP: {_brief(error)}") from None


def _reason(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else _brief(error)


async def read_bounded(response: aiohttp.ClientResponse, limit: int, seconds: float) -> bytes:
    """A small body whole. Raises UpstreamInvalid above `limit` bytes, UpstreamUnreachable when it breaks off, UpstreamTimeout after `seconds`."""
    where = shown(response.url)
    too_large = UpstreamInvalid(f"{where} sent a document of more than {limit} bytes")
    if response.content_length is not None and response.content_length > limit:
        raise too_large
    body = bytearray()
    try:
        # For all of it: one that drips would otherwise hold a client for ever.
        async with asyncio.timeout(seconds):
            while data := await response.content.readany():
                body += data
                if len(body) > limit:
                    raise too_large
        return bytes(body)
    except TimeoutError:
        raise UpstreamTimeout(f"{where} did not send all of a document in time") from None
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnreachable(f"{where} broke off within a document: {_brief(error)}") from None


def _proxy(url: str) -> tuple[URL, dict[str, str]]:
    """A proxy as the environment names it, and the header that it wants; user and password apart, since aiohttp puts URLs into its errors. Raises OSError."""
    try:
        parsed = URL(url if "://" in url else f"http://{url}")
    except ValueError:
        raise OSError("a proxy that the environment names (http_proxy, https_proxy) is not a URL") from None
    headers = {}
    if parsed.user or parsed.password:
        given = f"{parsed.user or ''}:{parsed.password or ''}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(given).decode()}"
    return parsed.with_user(None), headers


def length_of(response: Answer) -> int | None:
    """What Content-Length says, in bytes; None where it says nothing that is a number."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() else None


def retry_after(response: Answer) -> float | None:
    """Retry-After in seconds, from either of its forms (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def shown(url: URL) -> str:
    """A URL as it may be shown: without user, password and query, which may hold a signature. `url` is absolute."""
    return str(url.with_user(None).with_query(None).with_fragment(None))[:200]


def _brief(error: BaseException) -> str:
    """One line, though an upstream may have had its say in it."""
    text = "".join(character if character.isprintable() else " " for character in str(error))
    return (" ".join(text.split()) or type(error).__name__)[:200]


class _Refused(OSError):
    pass


class _PublicOnly(AbstractResolver):
    """Looks at the addresses that a connection will really be made to: a name proves nothing."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if any(not _public(result["host"]) for result in found):
            raise _Refused("not a public address")
        return found

    async def close(self) -> None:
        """The resolver behind it is closed by the transport."""


def _is_literal(url: URL) -> bool:
    try:
        ipaddress.ip_address((url.host or "").partition("%")[0])
    except ValueError:
        return False
    return True


def _public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            embedded = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if embedded is not None:
            parsed = embedded
    return parsed.is_global and not parsed.is_multicast
