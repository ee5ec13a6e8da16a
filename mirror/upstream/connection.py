"""One HTTP/1.1 connection to upstream, whose methods block: for the threads of `mirror.upstream.receiver`.

The framing is h11's. A body whose length is known goes from the socket into the caller's memory, past h11.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import select
import socket
import ssl
import struct
import termios
from collections.abc import Hashable

import h11
from multidict import CIMultiDict, CIMultiDictProxy

from mirror.upstream.tunnels import NestedTls, ProxyHop

_HEAD = 64 * 1024
"""Bytes of the longest response head, and of one read: signed URLs in Location are long."""
_GATHER = 0.05
"""Seconds at most to wait for more bytes of a slow body: passing bytes to the event loop costs as much as receiving 100 kB."""
_ENOUGH = 1024 * 1024
"""Bytes that are passed on without waiting for more."""
_RESET = struct.pack("ii", 1, 0)
_END_OF_HEAD = re.compile(rb"(?<=\n)\r?\n")
_SPACED_NAMES = re.compile(rb"(?m)^[!#-'*+\-.0-9A-Z^-z|~]+ [!#-'*+\-.0-9A-Z^-z|~ ]*:[\t -~\x80-\xff]*\r?\n(?:[ \t].*\n)*")
"""Header fields with a space in their name or after it. RFC 9112, section 5.1, forbids them, but Go's clients read past them."""


class Connection:
    """A connection. Its methods block. Only one thread at a time may use it, except for `abort`."""

    def __init__(self, key: Hashable, connected: socket.socket) -> None:
        connected.setblocking(True)
        self.key = key
        self.answered = False
        """True if a part of the last response was received."""
        self._socket = connected
        """What the kernel has."""
        self._stream: socket.socket | NestedTls = connected
        """What is read from and written to: the socket, or TLS within its TLS."""
        self._aborted = False
        self._h11 = h11.Connection(h11.CLIENT)
        self._left: int | None = 0
        """Bytes of the body not yet received; None if h11 finds its end."""
        self._early = b""
        """Bytes of the body that were received with the head."""
        self._keep = True
        self._flowing = False
        """True after the first bytes of a body."""

    def pass_proxy(self, hop: ProxyHop) -> None:
        """Makes the TLS handshake with an HTTP proxy, and the tunnel to the origin. Raises ProxyUnreachable."""
        if hop.tls is not None:
            try:
                self.start_tls(hop.tls, hop.host)
            except OSError as error:
                raise hop.broken(error) from None
        hop.tunnel(self._socket)

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Makes the TLS handshake. Raises OSError."""
        tls: ssl.SSLSocket | NestedTls
        if isinstance(self._socket, ssl.SSLSocket):
            self._stream = tls = NestedTls(self._socket, context, host)
        else:
            self._stream = self._socket = tls = context.wrap_socket(
                self._socket, server_hostname=host, do_handshake_on_connect=False
            )
        self._check()
        tls.do_handshake()

    def exchange(self, request: h11.Request) -> tuple[int, CIMultiDictProxy[str]]:
        """Sends a request without a body and reads the head of the response. Raises OSError, h11.RemoteProtocolError."""
        self._check()
        self.answered, self._flowing = False, False
        self._stream.sendall(self._begin(request))
        while not isinstance(response := self._head_event(request), h11.Response):
            if not isinstance(response, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection was closed without an answer")
        fields: CIMultiDict[str] = CIMultiDict()
        for name, value in response.headers:
            # Go passes values on as bytes; URLs in them are UTF-8 as often as not. urls.py makes bytes of other encodings again of what they become here.
            fields.add(name.decode("ascii"), value.decode("utf-8", "surrogateescape"))
        self._frame(request.method != b"HEAD", response, fields)
        return response.status_code, CIMultiDictProxy(fields)

    def _begin(self, request: h11.Request) -> bytes:
        """Begins an exchange, and returns the bytes of the request."""
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
        head = self._h11.send(request)
        assert head is not None
        self._h11.send(h11.EndOfMessage())
        return head

    def _head_event(self, request: h11.Request) -> object:
        """Returns h11's next event before the body. Leaves out header fields with a space in their name, at which h11 fails."""
        while True:
            received = self._h11.trailing_data[0]
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError:
                end = _END_OF_HEAD.search(received)
                head, spaced = _SPACED_NAMES.subn(b"", received[: end.start()]) if end is not None else (b"", 0)
                if end is None or not spaced:
                    raise
                self._begin(request)
                self._h11.receive_data(head + received[end.start() :])
                continue
            if event is not h11.NEED_DATA:
                return event
            self._receive_more(in_head=True)

    def _frame(self, has_body: bool, response: h11.Response, fields: CIMultiDict[str]) -> None:
        """Determines the length of the body (RFC 9112, section 6.3)."""
        length = fields.get("Content-Length")
        if not has_body or response.status_code in (204, 304):
            self._left = 0
        else:
            self._left = int(length) if length is not None and "Transfer-Encoding" not in fields else None
        options = ",".join(fields.getall("Connection", [])).lower().split(",")
        self._keep = response.http_version == b"1.1" and "close" not in (option.strip() for option in options)
        early = bytearray()
        if self._left is not None:
            # The bytes in h11's buffer. The rest is received without it.
            while isinstance(event := self._h11.next_event(), h11.Data):
                early += event.data
            self._left -= len(early)
            if self._h11.trailing_data[0]:
                self._keep = False
        self._early = bytes(early)

    @property
    def complete(self) -> bool:
        return self._left == 0 and not self._early

    @property
    def buffered(self) -> bool:
        """True if all that is left of the body was received with the head, so that `fill` does not block."""
        return self._left == 0 and bool(self._early)

    def skip(self) -> None:
        """Drops the bytes of the body that were received with the head."""
        self._early = b""

    @property
    def reusable(self) -> bool:
        return self.complete and self._keep and not self._aborted

    @property
    def quiet(self) -> bool:
        """True if an idle connection is open, and nothing was received on it."""
        return not self._readable()

    @property
    def has_received(self) -> bool:
        """True if bytes, or the connection's end, wait in the kernel. May be called from any thread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def unread(self) -> int:
        """Bytes that have arrived and were not read yet; with TLS, as they came over the wire. 0 where the system does not say."""
        count = bytearray(struct.calcsize("i"))
        # ValueError: the connection was closed.
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self._socket, termios.FIONREAD, count)
        return len(self._early) + int(struct.unpack("i", count)[0])

    def fill(self, buffer: memoryview) -> int:
        """Receives bytes of the body and returns how many; 0 at its end. Raises OSError, h11.RemoteProtocolError."""
        if self._early:
            count = min(len(self._early), len(buffer))
            buffer[:count] = self._early[:count]
            self._early = self._early[count:]
            if self._left is None:
                return count
        elif self._left is None:
            return self._fill_by_h11(buffer)
        else:
            count = self._receive(buffer)
            enough = min(len(buffer), _ENOUGH)
            if self._flowing and self._left and count < enough:
                self._gather(min(self._left, enough - count))
            self._flowing = True
        try:
            while self._left and count < len(buffer) and self._readable():
                count += self._receive(buffer[count:])
        except OSError:
            # The bytes before the error are good. The next call raises it again.
            pass
        return count

    def _receive(self, buffer: memoryview) -> int:
        assert self._left is not None
        if not self._left:
            return 0
        count = self._stream.recv_into(buffer[: self._left])
        if not count:
            raise ConnectionResetError("the other side closed the connection")
        self._left -= count
        return count

    def _fill_by_h11(self, buffer: memoryview) -> int:
        event = self._event()
        if isinstance(event, h11.Data):
            count = min(len(event.data), len(buffer))
            buffer[:count] = event.data[:count]
            self._early = bytes(event.data[count:])
            return count
        self._left = 0
        self._keep = self._keep and self._h11.their_state is h11.DONE and not self._h11.trailing_data[0]
        return 0

    def _gather(self, wanted: int) -> None:
        """Waits up to 50 ms until `wanted` bytes, or a third of the kernel's buffer, can be received at once."""
        # With a third, the sender never stops and the kernel does not shrink the window (tcp(7), SO_RCVLOWAT).
        room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 3
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(min(wanted, room), 1))
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll(_GATHER * 1000)
        finally:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._receive_more()
        return event

    def _receive_more(self, *, in_head: bool = False) -> None:
        """Passes the next bytes from the connection to h11."""
        data = self._stream.recv(_HEAD)
        if in_head and not data:
            raise ConnectionResetError("the other side closed the connection without an answer")
        self.answered = self.answered or bool(data)
        self._h11.receive_data(data)

    def _readable(self) -> bool:
        if isinstance(self._stream, ssl.SSLSocket | NestedTls) and self._stream.pending():
            return True
        return self.has_received

    def _check(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("the request was given up")

    def abort(self) -> None:
        """Ends the connection at once, which wakes a thread that waits on it. May be called from any thread."""
        self._aborted = True
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown: it drops the TLS state, which another thread may be using.
            socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def close(self) -> None:
        """Closes the connection, which no thread may be using; with a reset if the body is not complete."""
        with contextlib.suppress(OSError):
            if not self.complete:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()
