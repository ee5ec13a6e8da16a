"""Makes connections to an origin, directly or through a proxy."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl

import aiohappyeyeballs
from aiohttp.abc import AbstractResolver
from python_socks import ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_ import asyncio as socks
from yarl import URL

from mirror.upstream.proxies import Proxy
from mirror.upstream.receiver import Route
from mirror.upstream.trust import trusting
from mirror.upstream.tunnels import ProxyHop, ProxyUnreachable

_LONGEST_SECRET = 255
"""Of a user name or password for SOCKS5 (RFC 1929, section 2)."""


class NoConnection(OSError):
    """A connection was refused, or the host cannot be reached."""


class ConnectTimeout(OSError):
    """A connection was not established in time."""


def direct(url: URL, resolver: AbstractResolver, tls: ssl.SSLContext | None, public_only: bool, seconds: float) -> Route:
    """Returns a route without a proxy. `tls` is None for plain HTTP; `seconds` is the limit for connecting."""
    host, port = _place(url)
    return Route((host, port, tls, public_only), lambda: _connect(resolver, host, port, seconds), tls)


def proxied(
    url: URL,
    proxy: Proxy,
    resolver: AbstractResolver,
    target_resolver: AbstractResolver,
    tls: ssl.SSLContext | None,
    seconds: float,
) -> Route:
    """Returns a route through a proxy, with a time limit for connecting in seconds.

    `resolver` is for the proxy's own name, `target_resolver` for the host of `url` behind ``socks5``. Raises ProxyUnreachable if the credentials cannot be read.
    """
    host, port = _place(url)
    key = (proxy, host, port, tls, target_resolver)
    if proxy.url.scheme.startswith("socks5"):
        return Route(key, lambda: _connect_socks(proxy, resolver, target_resolver, host, port, seconds), tls)
    try:
        headers = proxy.headers()
    except (OSError, ValueError) as error:
        raise ProxyUnreachable(f"{told(proxy)}: its credentials cannot be read: {_words(error)}") from None
    proxy_tls = _system_tls() if proxy.url.scheme == "https" else None
    # A tunnel for https (RFC 9110, section 9.3.6), and the whole URL as target for http.
    hop = ProxyHop(
        told(proxy), proxy.url.host or "", proxy_tls, None if tls is None else f"{url.host_subcomponent}:{port}", headers
    )
    return Route(key, lambda: _connect_proxy(proxy, resolver, seconds), tls, hop)


@functools.cache
def _system_tls() -> ssl.SSLContext:
    return trusting(None)


def told(proxy: Proxy) -> str:
    """Returns the name of a proxy for errors: its URL without credentials, and what names it."""
    return f"the proxy {str(proxy.url).rstrip('/')} ({proxy.origin})"


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


async def _connect_proxy(proxy: Proxy, resolver: AbstractResolver, seconds: float) -> socket.socket:
    """Raises ProxyUnreachable."""
    try:
        return await _connect(resolver, *_place(proxy.url), seconds)
    except OSError as error:
        raise ProxyUnreachable(f"{told(proxy)}: {_words(error)}; check that it runs, and its address and port") from None


async def _connect_socks(
    proxy: Proxy, resolver: AbstractResolver, target_resolver: AbstractResolver, host: str, port: int, seconds: float
) -> socket.socket:
    """Connects through a SOCKS5 proxy (RFC 1928), and resolves the host here unless the proxy does. Raises OSError, ProxyUnreachable."""
    if not proxy.resolves:
        found = await target_resolver.resolve(host, port, socket.AF_UNSPEC)
        host = found[0]["host"]
    try:
        user, password = proxy.credentials() or (None, None)
    except (OSError, ValueError) as error:
        raise ProxyUnreachable(f"{told(proxy)}: its credentials cannot be read: {_words(error)}") from None
    if not all(word is None or (word.isascii() and len(word) <= _LONGEST_SECRET) for word in (user, password)):
        raise ProxyUnreachable(f"{told(proxy)}: its user and password must be ASCII, of {_LONGEST_SECRET} characters at most")
    way = socks.Proxy(
        ProxyType.SOCKS5, *_place(proxy.url), user, password, rdns=True, forward=_Connector(proxy, resolver, seconds)
    )
    try:
        return await way.connect(host, port, timeout=2 * seconds)
    except ProxyTimeoutError:
        raise ProxyUnreachable(f"{told(proxy)}: no answer in {2 * seconds:g} s") from None
    except ProxyError as error:
        raise ProxyUnreachable(f"{told(proxy)}: {_refusal(proxy, error)}") from None
    except ProxyUnreachable:
        raise
    except OSError as error:
        raise ProxyUnreachable(f"{told(proxy)}: {_words(error)}") from None
    except ValueError:
        # python-socks parses a reply without checks. Nothing of the error is shown: it may quote what was sent.
        raise ProxyUnreachable(f"{told(proxy)}: it sent a malformed reply, or cannot be sent the name of the host") from None


class _Connector(socks.Proxy):
    """Makes the TCP connection to the proxy as all others are made: python-socks would try one address only."""

    def __init__(self, proxy: Proxy, resolver: AbstractResolver, seconds: float) -> None:
        super().__init__(ProxyType.SOCKS5, *_place(proxy.url))
        self._arguments = proxy, resolver, seconds

    async def connect(self, dest_host: str, dest_port: int, timeout: float | None = None, **_: object) -> socket.socket:
        return await _connect_proxy(*self._arguments)


_REFUSALS = {
    1: "it cannot reach the host, or does not resolve its name",
    2: "its rules forbid this connection",
    3: "it has no way to that network",
    4: "it cannot reach the host",
    5: "the host refused its connection",
    6: "the host did not answer it in time",
}
"""Of a SOCKS server's reply (RFC 1928, section 6)."""


def _refusal(proxy: Proxy, error: ProxyError) -> str:
    if error.error_code in _REFUSALS:
        return _REFUSALS[error.error_code]
    text = " ".join(str(error).split())[:200]
    if "uthentication" in text or "cceptable" in text:
        return f"{text}; check the user and password in proxy_credentials_file"
    return f"{text or 'it closed the connection'}; is it a SOCKS5 proxy?"


def _words(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) and error.errno and error.errno > 0 else None
    return os.strerror(number) if number else str(error)


def _address(host: str, port: int, family: int) -> tuple[str, int] | tuple[str, int, int, int]:
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)
