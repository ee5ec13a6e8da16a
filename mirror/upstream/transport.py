"""Sends requests to upstreams, with timeouts, proxies and a check of addresses, and translates errors to UpstreamError."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import h11
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from mirror import __version__
from mirror.errors import Offline, TargetRefused, UpstreamFailed, UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable
from mirror.tasks import close_all
from mirror.upstream import dialing
from mirror.upstream.health import Delivery
from mirror.upstream.proxies import Proxies, Proxy, Way
from mirror.upstream.rates import Limiter, Parts
from mirror.upstream.receiver import Receiver, Response
from mirror.upstream.trust import system_tls
from mirror.upstream.tunnels import ProxyUnreachable

_GZIP = b"\x1f\x8b"
"""The first bytes of gzip data (RFC 1952, section 2.3.1)."""
_MOST_DIGITS = 18
"""Digits of Content-Length: a larger number does not fit into 63 bits."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""Addresses outside of it are local, or embed an IPv4 address (RFC 4291, section 2.4)."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits in seconds, and the number of attempts."""

    connect: float
    header: float
    """From the request to its response headers, retries included."""
    stall: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Connections:
    """Limits on connections that fetch blobs at once. They do not apply to the first connection of each blob."""

    per_blob: int
    per_endpoint: int
    in_all: int


class Transport:
    """Sends requests over a pool of connections. Connections to public addresses only are pooled apart."""

    def __init__(self, timeouts: Timeouts, connections: Connections, way: Way | None = None, parts: Parts | None = None) -> None:
        """`way` is for requests that name none; the environment's proxies by default. `parts` are those of the caps on downloads. Raises OSError if the environment's
        proxies cannot be used."""
        self.timeouts = timeouts
        self.connections = connections
        self.deliveries: list[Delivery] = []
        """Of all endpoints of all registries."""
        self.way: Way = Proxies() if way is None else way
        self.offline = False
        """True if no request may be sent, and no name resolved."""
        self.limiter = Limiter(parts)
        self._resolver = ThreadedResolver()
        self._public_resolver = _PublicOnly(self._resolver)
        self._receiver = Receiver(f"mirror/{__version__}")

    async def aclose(self) -> None:
        self.limiter.close()
        await close_all(self._receiver.aclose, self._resolver.close)

    def check_online(self) -> None:
        """Raises Offline if no request may be sent."""
        if self.offline:
            raise Offline("this mirror is offline (upstream.offline), so no registry is asked")

    def allows_spare(self, delivery: Delivery) -> bool:
        """Returns whether an endpoint may have one more spare connection.

        Active endpoints have equal shares of the limit on all connections, so that slow downloads from one do not take the share of another.
        """
        bounds = self.connections
        active = [one.active for one in self.deliveries if one.active or one is delivery]
        fair = delivery.active < bounds.in_all // len(active)
        return delivery.active < bounds.per_endpoint and (fair or sum(active) < bounds.in_all)

    async def request(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        *,
        public_only: bool = False,
        tls: ssl.SSLContext | None = None,
        timeout: float | None = None,
        way: Way | None = None,
        registry: str | None = None,
    ) -> Response:
        """Sends a GET or HEAD and waits for the response's head. Does not follow redirects. The caller releases or closes the response.

        `registry` is the one whose rate cap holds for the body; None for requests without a cap.

        Raises Offline, UpstreamUnreachable, UpstreamTimeout, UpstreamInvalid, TargetRefused; UpstreamFailed if the connection ends without a response.
        """
        self.check_online()
        context = (tls or system_tls()) if url.scheme == "https" else None
        resolver = self._public_resolver if public_only else self._resolver
        proxy = (self.way if way is None else way).of(url)
        seconds = self.timeouts.connect
        buffer = None if registry is None else self.limiter.receive_buffer(registry)
        with _translated(url, public_only, proxy):
            route = (
                dialing.direct(url, resolver, context, public_only, seconds, buffer)
                if proxy is None
                else dialing.proxied(url, proxy, self._resolver, resolver, context, seconds, buffer)
            )
            async with asyncio.timeout(self.timeouts.header if timeout is None else timeout):
                return await self._receiver.send(method, url, headers, route)

    async def is_private(self, url: URL, way: Way | None = None) -> bool:
        """Returns whether no address of the host is public. A host that cannot be resolved counts as public, which allows less.

        So does a name that a proxy resolves: it is not resolved here. Raises Offline.
        """
        self.check_online()
        host = url.raw_host or ""
        if _literal(host) is not None:
            return not _public(host)
        proxy = (self.way if way is None else way).of(url)
        if proxy is not None and proxy.resolves:
            return False
        try:
            async with asyncio.timeout(self.timeouts.connect):
                found = await self._resolver.resolve(host, url.port or 443)
        except (OSError, TimeoutError, ValueError):
            return False
        return bool(found) and not any(_public(result["host"]) for result in found)


@contextlib.contextmanager
def _translated(url: URL, public_only: bool, proxy: Proxy | None) -> Iterator[None]:
    """Makes errors of ours of what goes wrong with a request. Raises as Transport.request does."""
    where = shown(url)
    host = url.raw_host or ""
    local_name = proxy is not None and proxy.resolves and host.rstrip(".").rpartition(".")[2] == "localhost"
    if public_only and ((_literal(host) is not None and not _public(host)) or local_name):
        raise TargetRefused(f"an upstream with a public address points to {where}, which is not public")
    through = "" if proxy is None else f", through {proxy.name}; check that the proxy works and allows this host"
    try:
        yield
    except _Refused:
        raise TargetRefused(f"an upstream with a public address points to {where}, which is not public") from None
    except socket.gaierror as error:
        raise UpstreamUnreachable(f"{where} cannot be resolved: {error.strerror or error}") from None
    except dialing.ConnectTimeout:
        raise UpstreamUnreachable(f"no connection with {where}: it does not answer") from None
    except TimeoutError:
        raise UpstreamTimeout(f"{where} did not answer in time{through}") from None
    except ssl.SSLError as error:
        raise UpstreamUnreachable(f"no TLS connection with {where}: {_brief(error)}{through}") from None
    except ProxyUnreachable as error:
        raise UpstreamUnreachable(f"no connection with {where}: {error}") from None
    except dialing.NoConnection as error:
        raise UpstreamUnreachable(f"no connection with {where}: {_reason(error)}") from None
    except OSError as error:
        raise UpstreamFailed(f"{where} gave no answer: {_reason(error)}{through}") from None
    except (h11.ProtocolError, ValueError) as error:
        raise UpstreamInvalid(f"{where} answered with something that is not HTTP: {_brief(error)}{through}") from None


def _reason(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else _brief(error)


async def read_bounded(response: Response, limit: int, seconds: float) -> bytes:
    """Reads a small body; decodes gzip, which some servers send unasked.

    Raises UpstreamInvalid above `limit` bytes, UpstreamFailed if the connection ends early, UpstreamTimeout after `seconds`.
    """
    where = source(response)
    too_large = UpstreamInvalid(f"{where} sent a document of more than {limit} bytes")
    if (length_of(response) or 0) > limit:
        raise too_large
    body = bytearray()
    try:
        # For the whole body: a server that sends a byte now and then must not hold up a client.
        async with asyncio.timeout(seconds):
            while data := await response.read(seconds):
                body += data
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise UpstreamTimeout(f"{where} did not send all of a document in time") from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise UpstreamFailed(f"{where} broke off within a document: {_brief(error)}") from None
    if response.headers.get("Content-Encoding", "").strip().lower() not in ("gzip", "x-gzip") or not body.startswith(_GZIP):
        return bytes(body)
    decoder = zlib.decompressobj(wbits=31)
    try:
        decoded = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise UpstreamInvalid(f"{where} sent a document that is not the gzip it says it is") from None
    if len(decoded) > limit:
        raise too_large
    if not decoder.eof:
        raise UpstreamFailed(f"{where} broke off within a document")
    return decoded


def length_of(response: Response) -> int | None:
    """Returns Content-Length in bytes; None if it is absent, not a number, or too large."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS else None


def retry_after(response: Response) -> float | None:
    """Returns Retry-After in seconds, from either of its forms (RFC 9110, section 10.2.3); None if there is none."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def shown(url: URL) -> str:
    """Formats an absolute URL for messages: without user and password, and without the query, which may hold a signature."""
    return str(url.with_user(None).with_query(None).with_fragment(None))[:200]


def source(response: Response) -> str:
    """Names where a response came from, for messages: its URL, and the proxy in between, which may have made it, or cut it off."""
    return f"{shown(response.url)}{response.through}"


def _brief(error: BaseException) -> str:
    """Formats an error as one printable line, since it may hold text from upstream."""
    text = "".join(character if character.isprintable() else " " for character in str(error))
    return (" ".join(text.split()) or type(error).__name__)[:200]


class _Refused(OSError):
    pass


class _PublicOnly(AbstractResolver):
    """Resolves to public addresses only. Connections are made to these addresses, so a name cannot resolve to another one later."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = [result for result in await self._resolver.resolve(host, port, family) if _public(result["host"])]
        if not found:
            raise _Refused("not a public address")
        return found

    async def close(self) -> None:
        """Does nothing: the transport closes the resolver."""


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parses an address in any form that resolvers accept (``127.1``, ``0x7f000001``); None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _public(host: str) -> bool:
    """Returns whether a host is a public address; False for a name."""
    address = _literal(host)
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is None and address not in _GLOBAL_UNICAST:
            return False
        address = embedded or address
    return address is not None and address.is_global and not address.is_multicast
