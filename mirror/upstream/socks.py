"""Connections through a SOCKS5 proxy (RFC 1928), by python-socks."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from python_socks import ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_ import asyncio

from mirror.upstream.proxies import Proxy
from mirror.upstream.tunnels import ProxyUnreachable, words

_LONGEST_SECRET = 255
"""Of a user name or password (RFC 1929, section 2)."""


async def connect(
    proxy: Proxy, connect_proxy: Callable[[], Awaitable[socket.socket]], host: str, port: int, seconds: float
) -> socket.socket:
    """Connects to a host, which the proxy resolves if it is a name; `connect_proxy` connects to the proxy. Raises OSError, ProxyUnreachable."""
    try:
        user, password = proxy.credentials() or (None, None)
    except (OSError, ValueError) as error:
        raise ProxyUnreachable(f"{proxy.name}: its credentials cannot be read: {words(error)}") from None
    if not all(word is None or (word.isascii() and len(word) <= _LONGEST_SECRET) for word in (user, password)):
        raise ProxyUnreachable(f"{proxy.name}: its user and password must be ASCII, of {_LONGEST_SECRET} characters at most")
    way = asyncio.Proxy(ProxyType.SOCKS5, *proxy.address, user, password, rdns=True, forward=_Connector(proxy, connect_proxy))
    try:
        return await way.connect(host, port, timeout=2 * seconds)
    except ProxyTimeoutError:
        raise ProxyUnreachable(
            f"{proxy.name}: no answer in {2 * seconds:g} s; check the proxy's own connection, or set another proxy"
        ) from None
    except ProxyError as error:
        raise ProxyUnreachable(f"{proxy.name}: {_refusal(error, proxy)}") from None
    except ProxyUnreachable:
        raise
    except OSError as error:
        raise ProxyUnreachable(f"{proxy.name}: {words(error)}; is it a SOCKS5 proxy?") from None
    except ValueError:
        # python-socks parses a reply without checks. Nothing of the error is shown: it may quote what was sent.
        raise ProxyUnreachable(f"{proxy.name}: it sent a malformed reply, or cannot be sent the name of the host") from None


class _Connector(asyncio.Proxy):
    """Makes the TCP connection to the proxy as all others are made: python-socks would try one address only."""

    def __init__(self, proxy: Proxy, connect_proxy: Callable[[], Awaitable[socket.socket]]) -> None:
        super().__init__(ProxyType.SOCKS5, *proxy.address)
        self._connect_proxy = connect_proxy

    async def connect(self, dest_host: str, dest_port: int, timeout: float | None = None, **_: object) -> socket.socket:
        return await self._connect_proxy()


_UNREACHED = {
    1: "it cannot reach the host, or does not resolve its name",
    3: "it has no way to that network",
    4: "it cannot reach the host",
    5: "the host refused its connection",
    6: "the host did not answer it in time",
}
"""What the reply of a SOCKS server means (RFC 1928, section 6)."""
_FORBIDDEN = 2


def _refusal(error: ProxyError, proxy: Proxy) -> str:
    if error.error_code in _UNREACHED:
        return f"{_UNREACHED[error.error_code]}; check the proxy's own connection, or set another proxy"
    if error.error_code == _FORBIDDEN:
        return "its rules forbid this host; allow the host there, or set another proxy"
    text = " ".join(str(error).split())[:200]
    if "uthentication" in text or "cceptable" in text:
        return f"{text}; {proxy.account_advice}"
    return f"{text or 'it closed the connection'}; is it a SOCKS5 proxy?"
