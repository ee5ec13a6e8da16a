"""The HTTP/1.1 client: connections whose TLS, receiving and decrypting run in threads.

The event loop decides and sends; a body of a gigabyte, decrypted there, would hold up everybody else and use one core alone. OpenSSL and the kernel work
without the GIL, so a thread for each connection that is receiving uses the others. The framing is h11's; what is received by length goes from the socket into
memory that is used again, without another copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import select
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import h11
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

BUFFER = 1024 * 1024
"""Bytes of a buffer. A body has two: one is filled while the other is worked on."""
_KEPT_BUFFERS = 16
"""To touch new memory costs as much as to fill it."""
_HEAD = 64 * 1024
"""Bytes read at once of a response's head, and the longest head: signed URLs in Location are long."""
_GATHER = 0.05
"""Seconds, at most, in which a slow body's next bytes are gathered: each hand-over costs as much as receiving 100 kB."""
_ENOUGH = BUFFER // 4
"""Bytes that are not gathered on."""
_IDLE = 60.0
"""Seconds that an unused connection is kept."""
_MOST_IDLE = 16
"""Unused connections kept for one key."""
_RESET = struct.pack("ii", 1, 0)
_THREADS = 1024
"""Downloads that can receive at the same time. A thread that waits for bytes costs some 50 kB."""


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach an origin. Connections with equal `key` are interchangeable."""

    key: Hashable
    connect: Callable[[], Awaitable[socket.socket]]
    """Makes a TCP connection, to the origin or through a proxy. Raises OSError."""
    tls: ssl.SSLContext | None
    """None for plain HTTP."""
    absolute: bool = False
    """The request goes to an HTTP proxy, which wants the whole URL (RFC 9112, section 3.2.2)."""
    headers: Mapping[str, str] | None = None
    """For that proxy."""


class Receiver:
    """A pool of connections and of threads. Belongs to the event loop that uses it."""

    def __init__(self, user_agent: str) -> None:
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="receiver")
        self._idle: dict[Hashable, list[tuple[_Connection, float]]] = {}
        self._open: set[_Connection] = set()
        self._buffers: list[memoryview] = []

    async def send(self, method: str, url: URL, headers: Mapping[str, str], route: Route) -> Response:
        """Sends a GET or HEAD and waits for the response's head. The caller closes the response, and sets the time limit.

        Raises what `route` raises where there is no connection, OSError (ssl.SSLError included) where it ended without an answer, and
        h11.RemoteProtocolError where the answer is not HTTP.
        """
        self._prune()
        host = url.host_subcomponent or ""
        sent = {
            "Host": host if url.is_default_port() else f"{host}:{url.port}",
            **self._headers,
            **(route.headers or {}),
            **headers,
        }
        target = str(url.with_fragment(None)) if route.absolute else url.raw_path_qs
        request = h11.Request(method=method, target=target, headers=list(sent.items()))
        while True:
            connection = self._take(route.key)
            reused = connection is not None
            if connection is None:
                connection = _Connection(route.key, await route.connect())
                self._open.add(connection)
            try:
                if not reused and route.tls is not None:
                    await self.run(connection, connection.start_tls, route.tls, url.host or "")
                status, fields = await self.run(connection, connection.exchange, request)
            except (OSError, h11.RemoteProtocolError):
                self._discard(connection)
                if reused and not connection.answered:
                    # The server closed it while it was idle: GET and HEAD may be sent again (RFC 9110, section 9.2.2).
                    continue
                raise
            except BaseException:
                self._discard(connection)
                raise
            return Response(url, status, fields, connection, self)

    async def run(self, connection: _Connection, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs a connection's blocking work in a thread. When cancelled, aborts the connection and waits for the thread to let go of it."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            connection.abort()
            await _ended(future)
            raise

    async def aclose(self) -> None:
        """Closes all connections and ends all threads."""
        for connection in list(self._open):
            connection.abort()
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)
        for connection in list(self._open):
            self._discard(connection)
        self._idle.clear()

    # ------------------------------------------------------------------ for responses

    def start(self, connection: _Connection, buffer: memoryview) -> asyncio.Future[int]:
        """Begins to fill a buffer from a connection."""
        return asyncio.get_running_loop().run_in_executor(self._pool, connection.fill, buffer)

    def take_buffer(self) -> memoryview:
        return self._buffers.pop() if self._buffers else memoryview(mmap.mmap(-1, BUFFER))

    def give_back(self, connection: _Connection, *buffers: memoryview) -> None:
        """Takes back buffers, and a connection: kept where another request can use it."""
        self._buffers += buffers
        del self._buffers[_KEPT_BUFFERS:]
        kept = self._idle.setdefault(connection.key, [])
        if connection.reusable and len(kept) < _MOST_IDLE:
            kept.append((connection, time.monotonic() + _IDLE))
        else:
            self._discard(connection)

    def _take(self, key: Hashable) -> _Connection | None:
        kept = self._idle.get(key, [])
        while kept:
            connection, _ = kept.pop()
            if connection.quiet:
                return connection
            self._discard(connection)
        return None

    def _prune(self) -> None:
        now = time.monotonic()
        for key, kept in list(self._idle.items()):
            while kept and kept[0][1] < now:
                self._discard(kept.pop(0)[0])
            if not kept:
                del self._idle[key]

    def _discard(self, connection: _Connection) -> None:
        connection.close()
        self._open.discard(connection)


class Response:
    """A response: its head, and a body that is received in a thread. Whoever has it releases or closes it."""

    def __init__(
        self, url: URL, status: int, headers: CIMultiDictProxy[str], connection: _Connection, receiver: Receiver
    ) -> None:
        self.url = url
        self.status = status
        self.headers = headers
        self._connection = connection
        self._receiver = receiver
        self._filling: asyncio.Future[int] | None = None
        self._buffers: list[memoryview] = []
        self._closed = False

    async def read(self, seconds: float) -> memoryview:
        """The next bytes, good until the next `read` or `aclose`; empty at the end.

        Raises TimeoutError when none came for so many seconds, OSError and h11.RemoteProtocolError when the connection broke off before the end.
        """
        if not self._buffers:
            self._buffers = [self._receiver.take_buffer(), self._receiver.take_buffer()]
        if self._filling is None:
            self._filling = self._receiver.start(self._connection, self._buffers[0])
        filling = self._filling
        done, _ = await asyncio.wait([filling], timeout=seconds)
        if not done:
            raise TimeoutError
        count = filling.result()
        data, free = self._buffers
        self._buffers = [free, data]
        # While the caller works on these bytes, the next ones come in.
        self._filling = None if self._connection.complete else self._receiver.start(self._connection, free)
        return data[:count]

    @property
    def complete(self) -> bool:
        """True when all of the body has been received."""
        return self._connection.complete

    def release(self) -> None:
        """Ends a response whose body nobody reads on. Without waiting: a thread that still receives lets go a moment later."""
        if self._closed:
            return
        self._closed = True
        if self._filling is None:
            self._connection.skip()
            self._receiver.give_back(self._connection, *self._buffers)
            return
        self._connection.abort()
        self._filling.add_done_callback(self._let_go)

    def _let_go(self, filled: asyncio.Future[int]) -> None:
        if not filled.cancelled():
            filled.exception()
        self._receiver.give_back(self._connection, *self._buffers)

    async def aclose(self) -> None:
        """Gives the connection back where all of the body has come, and ends it otherwise."""
        if self._closed:
            return
        self._closed = True
        if self._filling is not None:
            self._connection.abort()
            await _ended(self._filling)
        self._receiver.give_back(self._connection, *self._buffers)


class _Connection:
    """One connection. Its methods block; one thread at a time uses them, but for `abort`."""

    def __init__(self, key: Hashable, connected: socket.socket) -> None:
        connected.setblocking(True)
        self.key = key
        self.answered = False
        """True when some of the last response has come."""
        self._socket = connected
        self._aborted = False
        self._h11 = h11.Connection(h11.CLIENT)
        self._left: int | None = 0
        """Bytes of the body to come; None where its end is found by h11."""
        self._early = b""
        """Bytes of the body that came with the head."""
        self._keep = True
        self._flowing = False
        """True from the second bytes of a body on."""

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Raises OSError."""
        self._socket = context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
        self._check()
        assert isinstance(self._socket, ssl.SSLSocket)
        self._socket.do_handshake()

    def exchange(self, request: h11.Request) -> tuple[int, CIMultiDictProxy[str]]:
        """Sends a request without a body and reads the head of the response. Raises OSError, h11.RemoteProtocolError."""
        self._check()
        self.answered, self._flowing = False, False
        self._h11 = connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
        head = connection.send(request)
        assert head is not None
        self._socket.sendall(head)
        connection.send(h11.EndOfMessage())
        while not isinstance(response := self._event(in_head=True), h11.Response):
            if not isinstance(response, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection was closed without an answer")
        fields: CIMultiDict[str] = CIMultiDict()
        for name, value in response.headers:
            fields.add(name.decode("ascii"), value.decode("latin-1"))
        self._frame(request.method != b"HEAD", response, fields)
        return response.status_code, CIMultiDictProxy(fields)

    def _frame(self, has_body: bool, response: h11.Response, fields: CIMultiDict[str]) -> None:
        """Finds out how the body ends (RFC 9112, section 6.3)."""
        length = fields.get("Content-Length")
        if not has_body or response.status_code in (204, 304):
            self._left = 0
        else:
            self._left = int(length) if length is not None and "Transfer-Encoding" not in fields else None
        options = ",".join(fields.getall("Connection", [])).lower().split(",")
        self._keep = response.http_version == b"1.1" and "close" not in (option.strip() for option in options)
        early = bytearray()
        if self._left is not None:
            # What h11 holds already. The rest need not pass through it.
            while isinstance(event := self._h11.next_event(), h11.Data):
                early += event.data
            self._left -= len(early)
            if self._h11.trailing_data[0]:
                self._keep = False
        self._early = bytes(early)

    @property
    def complete(self) -> bool:
        return self._left == 0 and not self._early

    def skip(self) -> None:
        """Passes over what has come of the body."""
        self._early = b""

    @property
    def reusable(self) -> bool:
        return self.complete and self._keep and not self._aborted

    @property
    def quiet(self) -> bool:
        """True when an idle connection is still open, and nothing has come on it that nobody asked for."""
        return not self._readable()

    def fill(self, buffer: memoryview) -> int:
        """Receives some of the body; waits for it. 0 at its end. Raises OSError, h11.RemoteProtocolError."""
        if self._early:
            count = min(len(self._early), len(buffer))
            buffer[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        if self._left is None:
            return self._fill_by_h11(buffer)
        count = self._receive(buffer)
        if self._flowing and self._left and count < _ENOUGH:
            self._gather(min(self._left, _ENOUGH - count))
        self._flowing = True
        try:
            while self._left and count < len(buffer) and self._readable():
                count += self._receive(buffer[count:])
        except OSError:
            # What came before the break is good; the next call meets it again.
            pass
        return count

    def _receive(self, buffer: memoryview) -> int:
        assert self._left is not None
        if not self._left:
            return 0
        count = self._socket.recv_into(buffer[: self._left])
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
        """Waits until so many bytes can be received at once, or as many as fit well into the kernel's buffer: for 50 ms at most."""
        # A third of it: a sender is never held up, and the kernel need not make its window smaller (tcp(7), SO_RCVLOWAT).
        room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 3
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(min(wanted, room), 1))
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll(_GATHER * 1000)
        finally:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _event(self, *, in_head: bool = False) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            data = self._socket.recv(_HEAD)
            if in_head and not data:
                raise ConnectionResetError("the other side closed the connection without an answer")
            self.answered = self.answered or bool(data)
            self._h11.receive_data(data)
        return event

    def _readable(self) -> bool:
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _check(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("the request was given up")

    def abort(self) -> None:
        """Ends the connection at once; a thread that waits on it wakes up. May be called from any thread."""
        self._aborted = True
        with contextlib.suppress(OSError):
            # Not SSLSocket's own: that takes the TLS state away from under the thread that uses it.
            socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def close(self) -> None:
        """Only when no thread uses it any more. What is still to come of a body is refused at once, with a reset."""
        with contextlib.suppress(OSError):
            if not self.complete:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()


async def _ended(future: asyncio.Future[_T]) -> None:
    """Waits until a thread has done its work, whatever came of it."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()
