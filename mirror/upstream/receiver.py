"""The HTTP/1.1 client: connections whose TLS, receiving and decrypting run in threads.

Decrypting a body of a gigabyte in the event loop would delay all other requests, and use one core only. OpenSSL and the kernel work without the GIL, so a thread
for each receiving connection uses the other cores. The threads run the methods of `mirror.upstream.connection`.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import h11
from multidict import CIMultiDictProxy
from yarl import URL

from mirror.threads import ended
from mirror.upstream.connection import Connection
from mirror.upstream.tunnels import ProxyHop

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

BUFFER = 1280 * 1024
"""Bytes of a buffer. A body has two: one is filled while the caller processes the other.

Passing bytes from thread to thread costs as much as receiving some 100 kB, so a fast body is passed on in large pieces. A slow one never fills a buffer.
Larger pieces than this leave the processor's second-level cache (2 MiB on current servers) before they are written, which costs more than it saves.
"""
_FILLED = 16 * 1024 * 1024
"""Bytes of all buffers in use that are filled at most, as long as there are no more bodies than `_LEAST` is enough for."""
_LEAST = 256 * 1024
"""Bytes of each buffer that are used, however many bodies there are."""
_KEPT_BUFFERS = 12
"""Unused buffers kept for reuse: the first write to new memory costs as much as receiving the bytes."""
_IDLE = 60.0
"""Seconds that an unused connection is kept."""
_MOST_IDLE = 16
"""Unused connections kept for one key."""
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
    hop: ProxyHop | None = None
    """The HTTP proxy that the connection leads to, if any."""
    through: str = ""
    """The proxy's name, for messages that begin with the URL."""

    @property
    def absolute(self) -> bool:
        """True if the target of a request is the whole URL: for an HTTP proxy without a tunnel (RFC 9112, section 3.2.2)."""
        return self.hop is not None and self.hop.target is None


class Receiver:
    """A pool of connections and of threads. Belongs to the event loop that uses it."""

    def __init__(self, user_agent: str) -> None:
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="receiver")
        self._idle: dict[Hashable, list[tuple[Connection, float]]] = {}
        self._open: set[Connection] = set()
        self._buffers: list[memoryview] = []
        self._bodies = 0
        """Responses that have buffers."""

    async def send(self, method: str, url: URL, headers: Mapping[str, str], route: Route) -> Response:
        """Sends a GET or HEAD and waits for the response's head. The caller closes the response, and sets the time limit.

        Raises what `route.connect` raises; OSError (or ssl.SSLError) if the connection ends without a response; h11.RemoteProtocolError if the response is not HTTP.
        """
        self._prune()
        host = url.host_subcomponent or ""
        sent = {
            "Host": host if url.is_default_port() else f"{host}:{url.port}",
            **self._headers,
            **(route.hop.headers if route.hop is not None and route.absolute else {}),
            **headers,
        }
        target = str(url.with_fragment(None)) if route.absolute else url.raw_path_qs
        request = h11.Request(method=method, target=target, headers=list(sent.items()))
        while True:
            connection = self._take(route.key)
            reused = connection is not None
            if connection is None:
                connection = Connection(route.key, await route.connect())
                self._open.add(connection)
            try:
                if not reused and route.hop is not None:
                    await self._pass_proxy(connection, route.hop)
                if not reused and route.tls is not None:
                    await self.run(connection, connection.start_tls, route.tls, url.raw_host or "")
                status, fields = await self.run(connection, connection.exchange, request)
                if status == 407 and route.hop is not None:
                    raise route.hop.refusal(status)
            except (OSError, h11.RemoteProtocolError):
                self._discard(connection)
                if reused and not connection.answered:
                    # The server closed the idle connection. GET and HEAD are idempotent, and may be sent again (RFC 9110, section 9.2.2).
                    continue
                raise
            except BaseException:
                self._discard(connection)
                raise
            return Response(url, status, fields, connection, self, route.through)

    async def _pass_proxy(self, connection: Connection, hop: ProxyHop) -> None:
        """Raises ProxyUnreachable."""
        try:
            async with asyncio.timeout(hop.seconds):
                await self.run(connection, connection.pass_proxy, hop)
        except TimeoutError:
            raise hop.silent() from None

    async def run(self, connection: Connection, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs a connection's blocking work in a thread. If cancelled, aborts the connection and waits for the thread to end."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            connection.abort()
            await ended(future)
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

    def start(self, connection: Connection, buffer: memoryview) -> asyncio.Future[int]:
        """Starts to fill a buffer from a connection, in a thread: as much of it as the other bodies leave."""
        share = max(min(_FILLED // (2 * self._bodies), BUFFER), _LEAST)
        return asyncio.get_running_loop().run_in_executor(self._pool, connection.fill, buffer[:share])

    def take_buffers(self) -> list[memoryview]:
        """Returns the two buffers of a body."""
        self._bodies += 1
        return [self._buffers.pop() if self._buffers else memoryview(mmap.mmap(-1, BUFFER)) for _ in range(2)]

    def give_back(self, connection: Connection, buffers: list[memoryview]) -> None:
        """Takes back a body's buffers, if it has any, and a connection, which is kept if another request can use it and closed otherwise."""
        if buffers:
            self._bodies -= 1
            self._buffers += buffers
            del self._buffers[_KEPT_BUFFERS:]
        kept = self._idle.setdefault(connection.key, [])
        if connection.reusable and len(kept) < _MOST_IDLE:
            kept.append((connection, time.monotonic() + _IDLE))
        else:
            self._discard(connection)

    def _take(self, key: Hashable) -> Connection | None:
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

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._open.discard(connection)


class Response:
    """A response: its head, and a body that a thread receives. The owner releases or closes it."""

    def __init__(
        self,
        url: URL,
        status: int,
        headers: CIMultiDictProxy[str],
        connection: Connection,
        receiver: Receiver,
        through: str = "",
    ) -> None:
        self.url = url
        self.through = through
        """The proxy's name if there is one, for messages that begin with the URL."""
        self.status = status
        self.headers = headers
        self._connection = connection
        self._receiver = receiver
        self._filling: asyncio.Future[int] | None = None
        self._buffers: list[memoryview] = []
        self._closed = False

    async def read(self, seconds: float, wanted: int = sys.maxsize, *, ahead: bool = True) -> memoryview:
        """Returns the next bytes, empty at the end. They are valid until the next `read` or `aclose`.

        `wanted` is the number of bytes after which the caller reads no more: those beyond are not received. Without `ahead`, none of them are received before the next call.

        Raises TimeoutError if none are received for so many seconds; OSError or h11.RemoteProtocolError if the connection ends early.
        """
        if not self._buffers:
            self._buffers = self._receiver.take_buffers()
        if self._filling is None and self._connection.buffered:
            # No change of threads for a small blob or document.
            count = self._connection.fill(self._buffers[0][:wanted])
        else:
            count = await self._filled(seconds, wanted)
        data, free = self._buffers
        self._buffers = [free, data]
        # While the caller processes these bytes, the next ones are received.
        going_on = ahead and wanted > count and not self._connection.complete
        self._filling = self._receiver.start(self._connection, free[: wanted - count]) if going_on else None
        return data[:count]

    async def _filled(self, seconds: float, wanted: int) -> int:
        """Waits until a thread has filled the first buffer, and returns the number of bytes. Starts it if none is at work."""
        if self._filling is None:
            self._filling = self._receiver.start(self._connection, self._buffers[0][:wanted])
        filling = self._filling
        while not (await asyncio.wait([filling], timeout=seconds))[0]:
            # What has come and was not read yet is no fault of the server: this machine is busy, or was asleep.
            if not self._connection.has_received:
                raise TimeoutError
        return filling.result()

    @property
    def complete(self) -> bool:
        """True if the whole body was received."""
        return self._connection.complete

    @property
    def unread(self) -> int:
        """Bytes of the body that have arrived, and that no `read` has received."""
        return self._connection.unread

    def release(self) -> None:
        """Ends a response whose body is not read to its end. Does not wait for a thread that still receives."""
        if self._closed:
            return
        self._closed = True
        if self._filling is None:
            self._connection.skip()
            self._receiver.give_back(self._connection, self._buffers)
            return
        self._connection.abort()
        self._filling.add_done_callback(self._let_go)

    def _let_go(self, filled: asyncio.Future[int]) -> None:
        if not filled.cancelled():
            filled.exception()
        self._receiver.give_back(self._connection, self._buffers)

    async def aclose(self) -> None:
        """Returns the connection to the pool if the body is complete, and closes it otherwise."""
        if self._closed:
            return
        self._closed = True
        if self._filling is not None:
            self._connection.abort()
            await ended(self._filling)
        self._receiver.give_back(self._connection, self._buffers)
