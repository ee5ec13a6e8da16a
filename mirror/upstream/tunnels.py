"""The first steps on a connection to an HTTP proxy, TLS and a tunnel, and TLS within TLS. Blocking, for the threads of `mirror.upstream.receiver`."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import h11

from mirror.upstream.proxies import Proxy

_ANSWER = 4096
_RECORD = 16 * 1024 + 512
"""Bytes of a TLS record, at most (RFC 8446, section 5.2), with room for its header."""


class ProxyUnreachable(OSError):
    """A proxy does not answer, or refuses a connection. The message names the proxy and the reason."""


def words(error: BaseException) -> str:
    """Returns the text of an error, the system's own if it has a number."""
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    number = error.errno if isinstance(error, OSError) and error.errno and error.errno > 0 else None
    return os.strerror(number) if number else str(error)


@dataclass(frozen=True, slots=True)
class ProxyHop:
    """An HTTP proxy between this machine and the origin."""

    proxy: Proxy
    tls: ssl.SSLContext | None
    """For a proxy that is spoken to by https; otherwise None."""
    target: str | None
    """Host and port for CONNECT; None for plain HTTP, which needs no tunnel."""
    headers: Mapping[str, str] = field(repr=False)
    seconds: float
    """The time limit for the handshake and the tunnel together."""

    @property
    def host(self) -> str:
        """The proxy's host, for its certificate."""
        return self.proxy.address[0]

    def refusal(self, status: int) -> ProxyUnreachable:
        """Returns the error for an answer other than 200. It quotes nothing that the proxy wrote, which may be the user or password."""
        reason = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
        if status in (401, 407):
            # tinyproxy answers 401 to a wrong password.
            advice = self.proxy.account_advice
        elif status == 403:
            advice = "its rules forbid this host: allow the host there, or set another proxy"
        elif status >= 500:
            advice = "it cannot reach the host: check the proxy's own connection, or set another proxy"
        else:
            advice = "is it a proxy, and may it make tunnels to this port?"
        return ProxyUnreachable(f"{self.proxy.name} answered {f'{status} {reason}'.strip()}; {advice}")

    def tunnel(self, connected: socket.socket | ssl.SSLSocket) -> None:
        """Asks for a tunnel (RFC 9110, section 9.3.6). Raises ProxyUnreachable."""
        if self.target is None:
            return
        connection = h11.Connection(h11.CLIENT)
        request = connection.send(
            h11.Request(method="CONNECT", target=self.target, headers=[("Host", self.target), *self.headers.items()])
        )
        assert request is not None
        try:
            connected.sendall(request + (connection.send(h11.EndOfMessage()) or b""))
            while not isinstance(event := connection.next_event(), h11.Response):
                if event is h11.NEED_DATA:
                    if not (data := connected.recv(_ANSWER)):
                        raise ProxyUnreachable(f"{self.proxy.name} closed the connection; {self._question}")
                    connection.receive_data(data)
        except h11.RemoteProtocolError:
            raise ProxyUnreachable(f"{self.proxy.name} answered with something that is not HTTP; {self._question}") from None
        except OSError as error:
            raise self.broken(error) from None
        if event.status_code != 200:
            raise self.refusal(event.status_code)
        if connection.trailing_data[0]:
            # In a tunnel for TLS the client speaks first.
            raise ProxyUnreachable(f"{self.proxy.name} made no clean tunnel: bytes followed its answer; set another proxy")

    def broken(self, error: OSError) -> ProxyUnreachable:
        """Returns the error for a connection to the proxy that failed."""
        if isinstance(error, ProxyUnreachable):
            return error
        if isinstance(error, ssl.SSLError):
            return ProxyUnreachable(
                f"{self.proxy.name}: no TLS connection with it: {error.reason or error}; is it an https proxy, with a certificate for this name?"
            )
        return ProxyUnreachable(f"{self.proxy.name}: {words(error)}; {self._question}")

    def silent(self) -> ProxyUnreachable:
        """Returns the error for a proxy that made no tunnel in time."""
        return ProxyUnreachable(
            f"{self.proxy.name}: no answer in {self.seconds:g} s; check the proxy's own connection, or set another proxy"
        )

    @property
    def _question(self) -> str:
        return f"is it an {self.proxy.url.scheme} proxy?"


class NestedTls:
    """TLS within a TLS connection: `ssl.SSLContext.wrap_socket` does not take an SSLSocket."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def do_handshake(self) -> None:
        """Raises OSError."""
        while True:
            try:
                self._inner.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._exchange()
            except ssl.SSLError:
                self._send()
                raise
        self._send()

    def sendall(self, data: bytes) -> None:
        """Raises OSError."""
        self._inner.write(data)
        self._send()

    def recv(self, count: int) -> bytes:
        """Returns up to `count` bytes; none at the end. Raises OSError."""
        buffer = bytearray(count)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def recv_into(self, buffer: memoryview) -> int:
        """Fills a buffer with the bytes that come next, and returns their number; 0 at the end. Raises OSError."""
        while True:
            try:
                # An int, as it is given a buffer.
                return cast("int", self._inner.read(len(buffer), buffer))
            except ssl.SSLWantReadError:
                self._exchange()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    def pending(self) -> int:
        """Returns the number of bytes that can be read without waiting for the network."""
        return self._inner.pending() or self._incoming.pending or self._outer.pending()

    def _exchange(self) -> None:
        self._send()
        if data := self._outer.recv(_RECORD):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _send(self) -> None:
        if self._outgoing.pending:
            self._outer.sendall(self._outgoing.read())
