"""Where one of several workers takes connections from the socket that all of them listen on.

Every worker hears of a connection that comes, and whoever is awake would take all of them while the others still wake up. So a worker that has more connections
than another one holds back for a moment, and takes what is then still there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Sequence

from aiohttp import web

log = logging.getLogger(__name__)

_MOMENT = 0.002
_WITHOUT_FILES = 1.0
"""Seconds until it is tried again when there is no descriptor left."""
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Open from its making to its `aclose`."""

    def __init__(
        self,
        server: web.Server,
        listeners: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        counts: memoryview[int],
        number: int,
    ) -> None:
        """`counts` are how many connections each worker has, shared by all; this one is `number`."""
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._listeners = listeners
        self._tls = tls
        self._counts = counts
        self._number = number
        self._coming: set[asyncio.Task[None]] = set()
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)

    async def aclose(self) -> None:
        """Takes no more; what has been taken stays."""
        for handle in self._waiting.values():
            handle.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        # Those that have just come in begin: one that was never begun would leave its socket open.
        await asyncio.sleep(0)
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)

    def _listen(self, listener: socket.socket) -> None:
        self._waiting.pop(listener, None)
        self._loop.add_reader(listener, self._heard, listener)

    def _heard(self, listener: socket.socket) -> None:
        mine = self._counts[self._number] = len(self._server.connections) + len(self._coming)
        if mine > min(self._counts):
            self._hold_back(listener, _MOMENT)
        else:
            self._take(listener)

    def _hold_back(self, listener: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listener)
        self._waiting[listener] = self._loop.call_later(seconds, self._try_again, listener)

    def _try_again(self, listener: socket.socket) -> None:
        self._listen(listener)
        self._take(listener)

    def _take(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # Another worker was faster, or the client has gone.
            return
        except OSError as error:
            if error.errno not in _NO_FILES:
                raise
            log.error("cannot take connections: %s", error.strerror)
            self._loop.remove_reader(listener)
            self._waiting[listener] = self._loop.call_later(_WITHOUT_FILES, self._listen, listener)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._enter(connection))
        self._coming.add(task)
        self._counts[self._number] += 1
        task.add_done_callback(self._coming.discard)

    async def _enter(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._server, connection, ssl=self._tls)
        except OSError as error:
            log.debug("a connection came to nothing: %s", error)
            connection.close()
