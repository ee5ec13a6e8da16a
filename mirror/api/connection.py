"""One client's connection: answers hot requests from their bytes, and passes everything else on to aiohttp.

`Connection` is the protocol that the transport knows; aiohttp's is inside it, and is used by the methods of `asyncio.Protocol` alone. Whether aiohttp is
idle follows from what was passed in and what `Connection.finish` was told, never from aiohttp's own state.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from mirror.api.responses import error_response
from mirror.api.shortcuts import Shortcuts, is_plain
from mirror.errors import MirrorError, RequestInvalid

log = logging.getLogger(__name__)

LONGEST_LINE = 32 * 1024
"""Bytes of a request line, and of a header field: tokens of some identity providers are longer than 8 KiB."""
MOST_HEADERS = 200
IDLE = 300.0
"""Seconds until a connection is closed on which no request comes, or none to its end. Longer than clients and proxies keep one that they do not use (Go: 90 s),
since what they send just then would be lost."""

_LARGEST_BUFFER = 16 * 1024
"""Bytes that a client may have left unread and still be answered from the bytes of its request; aiohttp waits until it has read them. (Over TLS there are
some from the handshake on.)"""


class Connection(asyncio.Protocol):
    """Answers what `shortcuts` knows; `inner` answers the rest."""

    def __init__(self, inner: asyncio.Protocol, shortcuts: Shortcuts) -> None:
        self._inner = inner
        self._shortcuts = shortcuts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._at_boundary = True
        """The next bytes begin a request: each request so far has come whole, and by itself."""
        self._unanswered = 0
        """Requests that were passed in and whose responses the transport does not have yet."""
        self._pass_on_at = self._loop.time() + IDLE / 2
        """When a request must be passed on even if it is known: aiohttp closes a connection on which it has seen none for `IDLE`."""
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
        await response.prepare(request)
        await response.write_eof()
        self.request = None
        if response.keep_alive:
            self._unanswered -= 1
            self._pass_on_at = self._loop.time() + IDLE / 2

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.request = None
        if self._at_boundary:
            idle = self._unanswered == 0
            if idle and self._answered(data):
                return
            self._at_boundary = is_plain(data)
            self._unanswered += 1
            if idle and self._at_boundary:
                self.request = data
        self._inner.data_received(data)

    def _answered(self, data: bytes) -> bool:
        transport = self._transport
        if (
            transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size() > _LARGEST_BUFFER
            or self._loop.time() > self._pass_on_at
        ):
            return False
        answer = self._shortcuts.answer(data, self._client)
        if answer is None:
            return False
        transport.write(answer)
        return True

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Connections:
    """Makes connections; what an `asyncio` server calls for each."""

    def __init__(self, server: web.Server, shortcuts: Shortcuts, **options: Any) -> None:
        """`options` are those of aiohttp's request handler."""
        self._server = server
        self._shortcuts = shortcuts
        self._options = options

    def __call__(self) -> Connection:
        try:
            inner: asyncio.Protocol = _RequestHandler(self._server, loop=asyncio.get_running_loop(), **self._options)
        except TypeError:
            # This aiohttp makes its handlers otherwise: its own way of making them is always right.
            inner = self._server()
        return Connection(inner, self._shortcuts)

    def __len__(self) -> int:
        return len(self._server.connections)


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
            reason = (str(message or exc).splitlines() or ["?"])[0][:200]
            log.info("refused a request from %s: %s", request.remote, reason, extra={"cause": reason})
            response = error_response(
                RequestInvalid(
                    f"not a well-formed HTTP request, or beyond a limit: the request line and each header field may have {LONGEST_LINE}"
                    f" bytes, and there may be {MOST_HEADERS} header fields ({reason})"
                )
            )
        response.force_close()
        return response
