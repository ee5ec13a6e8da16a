"""Makes connections to an origin, directly or through a proxy."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import aiohappyeyeballs
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror.upstream.proxies import Proxy
from mirror.upstream.receiver import Route
from mirror.upstream.trust import system_tls
from mirror.upstream.tunnels import ProxyHop, ProxyUnreachable, words


class NoConnection(OSError):
    """A connection was refused, or the host cannot be reached."""


class ConnectTimeout(OSError):
    """A connection was not established in time."""


def direct(
    url: URL,
    resolver: AbstractResolver,
    tls: ssl.SSLContext | None,
    public_only: bool,
    seconds: float,
    receive_buffer: int | None = None,
) -> Route:
    """Returns a route without a proxy. `tls` is None for plain HTTP; `seconds` is the limit for connecting.

    `receive_buffer` is the size in bytes of the kernel's receive buffer for the connection; None for one that grows as needed.
    """
    host, port = _place(url)
    return Route(
        (host, port, tls, public_only, receive_buffer), lambda: _connect(resolver, host, port, seconds, receive_buffer), tls
    )


def proxied(
    url: URL,
    proxy: Proxy,
    resolver: AbstractResolver,
    target_resolver: AbstractResolver,
    tls: ssl.SSLContext | None,
    seconds: float,
    receive_buffer: int | None = None,
) -> Route:
    """Returns a route through a proxy, with a time limit for connecting in seconds, and `receive_buffer` as `direct` has it.

    `resolver` is for the proxy's own name, `target_resolver` for the host of `url` behind ``socks5``. Raises ProxyUnreachable if the credentials cannot be read.
    """
    host, port = _place(url)
    key = (proxy, host, port, tls, target_resolver, receive_buffer)
    connect = partial(_connect_proxy, proxy, resolver, seconds, receive_buffer)
    through = f" through {proxy.name}"
    if proxy.url.scheme.startswith("socks5"):
        return Route(key, lambda: _connect_by_socks(proxy, connect, target_resolver, host, port, seconds), tls, through=through)
    try:
        headers = proxy.headers()
    except (OSError, ValueError) as error:
        raise ProxyUnreachable(f"{proxy.name}: its credentials cannot be read: {words(error)}") from None
    proxy_tls = system_tls() if proxy.url.scheme == "https" else None
    # A tunnel for https (RFC 9110, section 9.3.6), and the whole URL as target for http.
    hop = ProxyHop(proxy, proxy_tls, None if tls is None else f"{url.host_subcomponent}:{port}", headers, 2 * seconds)
    return Route(key, connect, tls, hop, through)


def _place(url: URL) -> tuple[str, int]:
    # Not `host`, which is decoded: resolvers encode it by IDNA 2003, which makes another name of some.
    return url.raw_host or "", url.port or 0


async def _connect(resolver: AbstractResolver, host: str, port: int, seconds: float, receive_buffer: int | None) -> socket.socket:
    """Connects to a host. Raises OSError; ConnectTimeout after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await _connect_now(resolver, host, port, receive_buffer)
    except TimeoutError:
        raise ConnectTimeout("it does not answer") from None


async def _connect_now(resolver: AbstractResolver, host: str, port: int, receive_buffer: int | None) -> socket.socket:
    def make(address: tuple[object, ...]) -> socket.socket:
        made = socket.socket(*address[:3])  # type: ignore[arg-type]
        if receive_buffer is not None:
            # Before connecting, since a window that was offered must not shrink (RFC 9293, section 3.8.6).
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        return made

    found = await resolver.resolve(host, port, socket.AF_UNSPEC)
    addresses = [(one["family"], socket.SOCK_STREAM, 0, "", _address(one["host"], port, one["family"])) for one in found]
    try:
        return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=0.25, socket_factory=make)
    except OSError as error:
        raise NoConnection(*error.args) from None


async def _connect_proxy(proxy: Proxy, resolver: AbstractResolver, seconds: float, receive_buffer: int | None) -> socket.socket:
    """Raises ProxyUnreachable."""
    try:
        return await _connect(resolver, *proxy.address, seconds, receive_buffer)
    except OSError as error:
        raise ProxyUnreachable(f"{proxy.name}: {words(error)}; check that it runs, and its address and port") from None


async def _connect_by_socks(
    proxy: Proxy,
    connect: Callable[[], Awaitable[socket.socket]],
    target_resolver: AbstractResolver,
    host: str,
    port: int,
    seconds: float,
) -> socket.socket:
    """Connects through a SOCKS5 proxy, and resolves the host here unless the proxy does. Raises OSError, ProxyUnreachable."""
    # Most mirrors have no such proxy, and the library takes a hundredth of a start.
    from mirror.upstream import socks

    if not proxy.resolves:
        found = await target_resolver.resolve(host, port, socket.AF_UNSPEC)
        host = found[0]["host"]
    return await socks.connect(proxy, connect, host, port, seconds)


def _address(host: str, port: int, family: int) -> tuple[str, int] | tuple[str, int, int, int]:
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)
