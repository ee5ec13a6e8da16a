"""One client's connection: answers hot requests from their bytes, and passes everything else on to aiohttp.

`Connection` is the protocol that the transport knows; aiohttp's is inside it, and is used by the methods of `asyncio.Protocol` alone. Whether aiohttp is
idle follows from what was passed in and what `Connection.finish` was told, never from aiohttp's own state.

aiohttp bounds each header field and their number, but a head within these bounds may have megabytes. So heads are bounded as a whole, and what all connections
hold of requests that are not answered yet is bounded too. A client that does not read loses its connection.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import weakref
from collections import Counter, deque
from typing import Any

from aiohttp import web

from mirror.api.client_network import client_network
from mirror.api.framing import LONGEST_HEAD, Framing, HeadTooLong
from mirror.api.hosts import is_on_loopback
from mirror.api.responses import error_response, raw_response
from mirror.api.shortcuts import Shortcuts, is_plain
from mirror.api.targets import without_secret
from mirror.errors import ClientBusy, HeadTooLarge, MirrorError, RequestInvalid

log = logging.getLogger(__name__)

LONGEST_LINE = 32 * 1024
"""Bytes of a request line, and of a header field: tokens of some identity providers are longer than 8 KiB."""
MOST_HEADERS = 200
IDLE = 300.0
"""Seconds until a connection is closed on which no request comes, or none to its end. Longer than clients and proxies keep one that they do not use (Go: 90 s),
since what they send just then would be lost."""

_STUCK_AFTER = 300.0
"""Seconds after which a connection is ended whose client reads nothing of what was written to it."""
_CHECK_INTERVAL = 15.0
"""Seconds between two looks at whether a client reads."""
_MOST_PENDING = 64 * 1024
"""Bytes of requests that are read while an earlier one is answered; the rest waits in the kernel."""
_PENDING_PER_CLIENT = 8 * 1024 * 1024
_PENDING_IN_ALL = 64 * 1024 * 1024
"""Bytes of unanswered requests on all connections of a client, and on all there are, from which on none may have more than `_SMALL`."""
_SMALL = 16 * 1024
_SPARED = 2.0
"""Seconds for which an idle connection is kept even if there are too many: clients pause for as long between the requests of a pull."""
_LAST_WORDS = 2.0
"""Seconds for a client to read why it is refused, before its connection is closed."""
_LARGEST_BUFFER = 16 * 1024
"""Bytes that a client may have left unread and still be answered from the bytes of its request; aiohttp waits until it has read them. (Over TLS there are
some from the handshake on.)"""


class PendingRequests:
    """Counts the bytes of requests that are not answered yet, for each client and in all."""

    def __init__(self, per_client: int = _PENDING_PER_CLIENT, in_all: int = _PENDING_IN_ALL) -> None:
        self._per_client = per_client
        self._in_all = in_all
        self._clients: Counter[str] = Counter()
        self.total = 0

    def add(self, client: str, size: int) -> None:
        """Counts `size` bytes more; less where it is negative."""
        self.total += size
        self._clients[client] += size
        if not self._clients[client]:
            del self._clients[client]

    def too_many(self, client: str) -> bool:
        """True where a client's bytes are beyond its bound, or all are beyond theirs."""
        return self.total > self._in_all or self._clients[client] > self._per_client


class Connection(asyncio.Protocol):
    """Answers what `shortcuts` knows; `inner` answers the rest."""

    def __init__(self, inner: asyncio.Protocol, shortcuts: Shortcuts, held: PendingRequests) -> None:
        """`held` counts what is pending on all connections."""
        self._inner = inner
        self._shortcuts = shortcuts
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.client = self._network = ""
        """The address of whoever has connected: a client, or a proxy."""
        self.loopback = False
        self._framing = Framing()
        self._unanswered: deque[int] = deque()
        """Sizes of the heads of requests that were passed in and whose responses the transport does not have yet."""
        self._pending = 0
        """Their sum, with a head that has not come to its end."""
        self._last = False
        """aiohttp closes the connection after the response that it has given."""
        self._reading_paused = self._writing_paused = False
        self._refused = self._streams = False
        self._unread, self._unread_since = 0, 0.0
        """Bytes that the client has not read, and the time at which there were as many for the first time."""
        self._pass_on_at = self._loop.time() + IDLE / 2
        """When a request must be passed on even if it is known: aiohttp closes a connection on which it has seen none for `IDLE`."""
        self._idle_since = self._loop.time()
        self.request: bytes | None = None
        """The bytes of the request that is being answered, where it came whole, by itself, while nothing else was being answered."""

    @classmethod
    def of(cls, request: web.BaseRequest) -> Connection | None:
        """The connection that a request came by; None where it is not one of these."""
        transport = request.transport
        protocol = transport.get_protocol() if transport is not None else None
        return protocol if isinstance(protocol, cls) else None

    async def finish(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Writes what is left of a response, and notes that it is complete. Raises ConnectionError where the client has left."""
        if self._framing.endless and not response.prepared:
            # Where the next request begins is not known.
            response.force_close()
        await response.prepare(request)
        await response.write_eof()
        self.request = None
        self._last = self._last or not response.keep_alive
        if self._unanswered:
            self._hold(-self._unanswered.popleft())
        self._idle_since = self._loop.time()
        self._pass_on_at = self._idle_since + IDLE / 2
        if self._reading_paused and (self._pending <= _MOST_PENDING or self._last) and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def stream(self, is_empty: bool) -> None:
        """Lets the body of a request whose end is not followed come as fast as its handler reads it: aiohttp alone bounds then what is held of it.

        To be called before each read; `is_empty` where all that has come was read.
        """
        self._streams = True
        if is_empty and self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._network = client_network(self.client)
        self.loopback = is_on_loopback(transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.request = None
        if self._refused:
            return
        if self._last or (self._streams and self._framing.endless):
            self._inner.data_received(data)
            return
        idle = not self._unanswered
        if idle and self._framing.at_boundary and self._answered(data):
            return
        if self._framing.at_boundary and is_plain(data) and len(data) <= _SMALL:
            self._unanswered.append(len(data))
            self._hold(len(data))
            if idle:
                self.request = data
        else:
            before = self._framing.pending
            try:
                sizes = self._framing.feed(data)
            except HeadTooLong:
                self._refuse(HeadTooLarge(f"the request line and all header fields may have {LONGEST_HEAD} bytes together"))
                return
            self._hold(len(data) if self._framing.endless and not sizes else sum(sizes) + self._framing.pending - before)
            self._unanswered.extend(sizes)
            if self._pending > _SMALL and self._held.too_many(self._network):
                self._refuse(ClientBusy("too many bytes of unanswered requests are held: wait for their answers"))
                return
        self._inner.data_received(data)
        if self._unanswered and self._pending > _MOST_PENDING and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _hold(self, size: int) -> None:
        self._pending += size
        self._held.add(self._network, size)

    def _answered(self, data: bytes) -> bool:
        transport = self._transport
        if (
            transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size() > _LARGEST_BUFFER
            or (now := self._loop.time()) > self._pass_on_at
        ):
            return False
        answer = self._shortcuts.answer(data, self.loopback, self.client)
        if answer is None:
            return False
        transport.write(answer)
        self._idle_since = now
        return True

    def _refuse(self, error: MirrorError) -> None:
        """Answers in place of aiohttp, where nothing else is being answered, and closes the connection."""
        log.info("refused a request from %s: %s", self.client, error.message)
        self._refused = True
        transport = self._transport
        if transport is None:
            return
        if self._unanswered:
            transport.abort()
            return
        transport.write(raw_response(error))
        # What is unread when a socket is closed resets the connection, and the answer with it.
        self._loop.call_later(_LAST_WORDS, transport.close)

    def idle_since(self) -> float | None:
        """The time from which on no request has been answered or is being received. None while one is, or while a response is being sent."""
        transport = self._transport
        if transport is None or self._unanswered or not self._framing.at_boundary or transport.get_write_buffer_size():
            return None
        return self._idle_since

    def close(self) -> None:
        """Closes the connection. A server may do so to one that is idle at any time (RFC 9112, section 9.5)."""
        if self._transport is not None:
            self._transport.close()

    def end_if_stuck(self, now: float) -> None:
        """Ends the connection where the client has read nothing for `_STUCK_AFTER`. To be called from time to time."""
        transport = self._transport
        unread = 0
        if transport is not None and (self._writing_paused or transport.is_closing()):
            # Nobody writes now: it can only become less.
            unread = transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since >= _STUCK_AFTER and transport is not None:
            log.info("%s has read nothing for %g s: its connection is ended", self.client, _STUCK_AFTER)
            transport.abort()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._hold(-self._pending)
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._unread = 0
        self._inner.resume_writing()


class Connections:
    """Makes connections; what an `asyncio` server calls for each."""

    def __init__(self, server: web.Server, shortcuts: Shortcuts, **options: Any) -> None:
        """`options` are those of aiohttp's request handler."""
        self._server = server
        self._shortcuts = shortcuts
        self._options = options
        self._held = PendingRequests()
        self._made: weakref.WeakSet[Connection] = weakref.WeakSet()

    def __call__(self) -> Connection:
        try:
            inner: asyncio.Protocol = _RequestHandler(self._server, loop=asyncio.get_running_loop(), **self._options)
        except TypeError:
            # This aiohttp makes its handlers otherwise: its own way of making them is always right.
            inner = self._server()
        connection = Connection(inner, self._shortcuts, self._held)
        self._made.add(connection)
        return connection

    def __len__(self) -> int:
        return len(self._server.connections)

    def end_idle(self, count: int) -> None:
        """Closes up to `count` connections, those that have been idle for longest, and for `_SPARED` at least."""
        latest = asyncio.get_running_loop().time() - _SPARED
        idle = [(since, one) for one in self._made if (since := one.idle_since()) is not None and since <= latest]
        for _, connection in heapq.nsmallest(count, idle, key=lambda found: found[0]):
            connection.close()

    async def end_stuck(self) -> None:
        """Ends connections whose clients read nothing, until it is cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            now = asyncio.get_running_loop().time()
            for connection in list(self._made):
                connection.end_if_stuck(now)


class _RequestHandler(web.RequestHandler):
    """Answers what is not well-formed HTTP, or too long, with a registry's error as well."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("cut short: a part of the answer has been sent")
        if status >= 500:
            log.error("unexpected failure", exc_info=exc)
            response = error_response(MirrorError("the mirror failed to answer this; its log says why"))
        else:
            reason = without_secret((str(message or exc).splitlines() or ["?"])[0])[:200]
            log.info("refused a request from %s: %s", request.remote, reason, extra={"cause": reason})
            response = error_response(
                RequestInvalid(
                    f"not a well-formed HTTP request, or beyond a limit: the request line and each header field may have {LONGEST_LINE}"
                    f" bytes, and there may be {MOST_HEADERS} header fields ({reason})"
                )
            )
        response.force_close()
        return response
