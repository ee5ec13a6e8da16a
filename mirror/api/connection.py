"""One client's connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from mirror.api.responses import error_response
from mirror.api.shortcuts import Shortcuts, is_plain
from mirror.errors import MirrorError, RequestInvalid

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """Takes the shortest way where there is one, and answers what is no HTTP at all, or too long, with a registry's error as well."""

    __slots__ = ("_between", "_client", "_shortcuts", "plain")

    def __init__(self, shortcuts: Shortcuts, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shortcuts = shortcuts
        self._client = ""
        self._between = True
        """The next bytes begin a request: so far each has come whole, and by itself."""
        self.plain: bytes | None = None
        """The request that is being answered, where it came by itself and is one that could be answered from its bytes alone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""

    def data_received(self, data: bytes) -> None:
        if self._between:
            idle = self._idle
            if idle and (answer := self._shortcuts.answer(data, self._client)) is not None:
                assert isinstance(self.transport, asyncio.WriteTransport)
                self.transport.write(answer)
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                return
            plain = is_plain(data)
            self._between = plain
            # While another one is being answered, these bytes would be taken for that one's.
            self.plain = data if plain and idle else None
        else:
            self.plain = None
        super().data_received(data)

    @property
    def _idle(self) -> bool:
        """Nothing is being answered, or waits to be, and what was answered has left. (`_waiter` is what aiohttp waits on for the next request.)"""
        waits = self._waiter is not None and not self._messages and not self._force_close and not self._close
        return waits and isinstance(self.transport, asyncio.WriteTransport) and not self.transport.get_write_buffer_size()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("cut short: a part of the answer has been sent")
        if status >= 500:
            log.error("unexpected failure", exc_info=exc)
            response = error_response(MirrorError("the mirror failed to answer this; its log says why"))
        else:
            log.info("refused a request from %s: %s", request.remote, (str(message or exc).splitlines() or ["?"])[0][:200])
            response = error_response(
                RequestInvalid("not a well-formed HTTP request, or a line or header of it is longer than 8190 bytes")
            )
        response.force_close()
        return response
