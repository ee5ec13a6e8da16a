"""Makes connections to an origin, directly or through a proxy."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping

import aiohappyeyeballs
import h11
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror.upstream.proxies import Proxy
from mirror.upstream.receiver import Route

_ANSWER = 4096


class NoConnection(OSError):
    """A connection was refused, or the host cannot be reached."""


class ConnectTimeout(OSError):
    """A connection was not established in time."""


class ProxyUnreachable(OSError):
    """A proxy does not answer, or refuses a tunnel. The message says which proxy, and why."""


def direct(url: URL, resolver: AbstractResolver, tls: ssl.SSLContext | None, public_only: bool, seconds: float) -> Route:
    """Returns a route without a proxy. `tls` is None for plain HTTP; `seconds` is the limit for connecting."""
    host, port = _place(url)
    return Route((host, port, tls, public_only), lambda: _connect(resolver, host, port, seconds), tls)


def proxied(url: URL, proxy: Proxy, resolver: AbstractResolver, tls: ssl.SSLContext | None, seconds: float) -> Route:
    """Returns a route through an HTTP proxy: a tunnel for https (RFC 9110, section 9.3.6), requests in absolute form for http."""
    host, port = _place(url)
    place = _place(proxy.url)
    if tls is None:
        return Route(
            (*place, host, port), lambda: _connect_proxy(resolver, *place, seconds), None, absolute=True, headers=proxy.headers
        )
    target = f"{url.host_subcomponent}:{port}"
    return Route((*place, host, port, tls), lambda: _tunnel(resolver, place, seconds, proxy.headers, target), tls)


def _place(url: URL) -> tuple[str, int]:
    return url.host or "", url.port or 0


async def _connect(resolver: AbstractResolver, host: str, port: int, seconds: float) -> socket.socket:
    """Connects to a host. Raises OSError; ConnectTimeout after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await _connect_now(resolver, host, port)
    except TimeoutError:
        raise ConnectTimeout("it does not answer") from None


async def _connect_now(resolver: AbstractResolver, host: str, port: int) -> socket.socket:
    found = await resolver.resolve(host, port, socket.AF_UNSPEC)
    addresses = [(one["family"], socket.SOCK_STREAM, 0, "", _address(one["host"], port, one["family"])) for one in found]
    try:
        return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=0.25)
    except OSError as error:
        raise NoConnection(*error.args) from None


async def _connect_proxy(resolver: AbstractResolver, host: str, port: int, seconds: float) -> socket.socket:
    """Connects to a proxy. Raises ProxyUnreachable."""
    try:
        return await _connect(resolver, host, port, seconds)
    except OSError as error:
        raise ProxyUnreachable(
            f"the proxy {host}:{port}: {os.strerror(error.errno) if error.errno and error.errno > 0 else error}"
        ) from None


def _address(host: str, port: int, family: int) -> tuple[str, int] | tuple[str, int, int, int]:
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)


async def _tunnel(
    resolver: AbstractResolver, proxy: tuple[str, int], seconds: float, headers: Mapping[str, str], target: str
) -> socket.socket:
    """Connects to `target` through a proxy, by CONNECT. Raises OSError."""
    loop = asyncio.get_running_loop()
    connected = await _connect_proxy(resolver, *proxy, seconds)
    try:
        connection = h11.Connection(h11.CLIENT)
        request = connection.send(h11.Request(method="CONNECT", target=target, headers=[("Host", target), *headers.items()]))
        assert request is not None
        await loop.sock_sendall(connected, request + (connection.send(h11.EndOfMessage()) or b""))
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                connection.receive_data(await loop.sock_recv(connected, _ANSWER))
            elif not isinstance(event, h11.InformationalResponse):
                raise ProxyUnreachable("the proxy closed the connection")
        if event.status_code != 200:
            raise ProxyUnreachable(f"the proxy answered {event.status_code} {event.reason.decode('latin-1')}")
    except h11.RemoteProtocolError:
        connected.close()
        raise ProxyUnreachable("the proxy answered with something that is not HTTP") from None
    except BaseException:
        connected.close()
        raise
    return connected
