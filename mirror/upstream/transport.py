"""Requests to upstreams: timeouts, proxies, and which addresses may be connected to. What the client raises becomes an UpstreamError here."""

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
from mirror.errors import TargetRefused, UpstreamFailed, UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable
from mirror.tasks import close_all
from mirror.upstream import dialing
from mirror.upstream.health import Delivery
from mirror.upstream.proxies import Proxies
from mirror.upstream.receiver import Receiver, Response
from mirror.upstream.trust import trusting

_GZIP = b"\x1f\x8b"
"""RFC 1952, section 2.3.1."""
_MOST_DIGITS = 18
"""Of a length in bytes: more does not fit into 63 bits."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""RFC 4291, section 2.4: what is outside of it is local, or leads to an IPv4 address by ways of its own."""


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


class Transport:
    """Two pools of connections: one that goes anywhere, and one that goes to public addresses only."""

    def __init__(self, timeouts: Timeouts, connections: Connections) -> None:
        self.timeouts = timeouts
        self.connections = connections
        self.deliveries: list[Delivery] = []
        """Of all endpoints of all registries."""
        self._proxies = Proxies()
        self._resolver = ThreadedResolver()
        self._public_resolver = _PublicOnly(self._resolver)
        self._receiver = Receiver(f"mirror/{__version__}")
        self._tls = trusting(None)

    async def aclose(self) -> None:
        await close_all(self._receiver.aclose, self._resolver.close)

    def allows_spare(self, delivery: Delivery) -> bool:
        """True where an endpoint may have one more connection that a blob can do without.

        The bound over all endpoints is theirs in equal shares: one that takes long over its downloads takes nothing from the share of another.
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
    ) -> Response:
        """Sends a GET or HEAD, without following anything, and waits for the response's head. The caller releases or closes it.

        Raises UpstreamUnreachable, UpstreamFailed where a connection ended without an answer, UpstreamTimeout, UpstreamInvalid, TargetRefused.
        """
        context = (tls or self._tls) if url.scheme == "https" else None
        if (proxy := self._proxies.of(url)) is not None:
            # A proxy resolves names itself, and may well have a private address of its own.
            route = dialing.proxied(url, proxy, self._resolver, context, self.timeouts.connect)
        else:
            route = dialing.direct(
                url, self._public_resolver if public_only else self._resolver, context, public_only, self.timeouts.connect
            )
        with _translated(url, public_only):
            async with asyncio.timeout(self.timeouts.header if timeout is None else timeout):
                return await self._receiver.send(method, url, headers, route)

    async def is_private(self, url: URL) -> bool:
        """True where none of a host's addresses is public. One that cannot be resolved counts as public, which allows less."""
        host = url.host or ""
        if _literal(host) is not None:
            return not _public(host)
        try:
            async with asyncio.timeout(self.timeouts.connect):
                found = await self._resolver.resolve(host, url.port or 443)
        except (OSError, TimeoutError, ValueError):
            return False
        return bool(found) and not any(_public(result["host"]) for result in found)


@contextlib.contextmanager
def _translated(url: URL, public_only: bool) -> Iterator[None]:
    """Makes errors of ours of what goes wrong with a request. Raises as Transport.request does."""
    where = shown(url)
    host = url.host or ""
    if public_only and _literal(host) is not None and not _public(host):
        raise TargetRefused(f"an upstream with a public address points to {where}, which is not public")
    try:
        yield
    except _Refused:
        raise TargetRefused(f"an upstream with a public address points to {where}, which is not public") from None
    except socket.gaierror as error:
        raise UpstreamUnreachable(f"{where} cannot be resolved: {error.strerror or error}") from None
    except dialing.ConnectTimeout:
        raise UpstreamUnreachable(f"no connection with {where}: it does not answer") from None
    except TimeoutError:
        raise UpstreamTimeout(f"{where} did not answer in time") from None
    except ssl.SSLError as error:
        raise UpstreamUnreachable(f"no TLS connection with {where}: {_brief(error)}") from None
    except dialing.ProxyUnreachable as error:
        raise UpstreamUnreachable(f"no connection with {where}: {error}") from None
    except dialing.NoConnection as error:
        raise UpstreamUnreachable(f"no connection with {where}: {_reason(error)}") from None
    except OSError as error:
        raise UpstreamFailed(f"{where} gave no answer: {_reason(error)}") from None
    except (h11.ProtocolError, ValueError) as error:
        raise UpstreamInvalid(f"{where} answered with something that is not HTTP: {_brief(error)}") from None


def _reason(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else _brief(error)


async def read_bounded(response: Response, limit: int, seconds: float) -> bytes:
    """A small body whole, decoded where it came with gzip though nobody asked for that. Raises UpstreamInvalid above `limit` bytes, UpstreamFailed when it breaks off, UpstreamTimeout after `seconds`."""
    where = shown(response.url)
    too_large = UpstreamInvalid(f"{where} sent a document of more than {limit} bytes")
    if (length_of(response) or 0) > limit:
        raise too_large
    body = bytearray()
    try:
        # For all of it: one that drips would otherwise hold a client for ever.
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
    """What Content-Length says, in bytes; None where it says nothing that is a number, or more than can be."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS else None


def retry_after(response: Response) -> float | None:
    """Retry-After in seconds, from either of its forms (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
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
    """Gives the public addresses alone, to which a connection is really made then: a name proves nothing."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = [result for result in await self._resolver.resolve(host, port, family) if _public(result["host"])]
        if not found:
            raise _Refused("not a public address")
        return found

    async def close(self) -> None:
        """The resolver behind it is closed by the transport."""


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, in any spelling that resolvers take (``127.1``, ``0x7f000001``); None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _public(host: str) -> bool:
    """True for a public address; False for any other, and for a name."""
    address = _literal(host)
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is None and address not in _GLOBAL_UNICAST:
            return False
        address = embedded or address
    return address is not None and address.is_global and not address.is_multicast
