"""Accepts connections from listening sockets, which several workers may share.

The kernel wakes all workers for a new connection, and one that is running already would accept most of them. So a worker that has more connections than another
waits a moment, and accepts what is left then.

Connections may use three quarters of the process's descriptors; files need the rest. Beyond that,
connections that have been idle for longest are closed; while there are none, nothing is accepted: the kernel keeps clients in its queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Sequence

from mirror.workers.plain_http import refuse, speaks_tls

log = logging.getLogger(__name__)

_QUEUE = 1024
"""Connections that the kernel keeps until they are accepted (``backlog``, listen(2))."""
_BUSY_PAUSE = 0.002
"""Seconds for which a worker leaves connections to those that have fewer."""
_FULL_PAUSE = 0.2
"""Seconds between attempts while descriptors are short."""
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(host: str, port: int) -> tuple[socket.socket, ...]:
    """Returns sockets that listen on all addresses of `host`. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return tuple(socket.create_server(address[:2], family=family, backlog=_QUEUE) for family, _, _, _, address in found)


class Acceptor:
    """Accepts connections until `aclose`."""

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        connections: Callable[[], int],
        end_idle: Callable[[int], None],
        listeners: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        counts: memoryview[int],
        number: int,
    ) -> None:
        """`factory` makes a connection's protocol; `connections` returns how many are open. `counts`, in shared memory, are the open connections of each worker;
        this one is `number`."""
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._connections = connections
        self._end_idle = end_idle
        self._listeners = listeners
        self._tls = tls
        self._counts = counts
        self._number = number
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4
        self._full = False
        """True from `_most` connections, or a failed attempt, until there are 10 % fewer. Each change is logged once."""
        self._entering: set[asyncio.Task[None]] = set()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)

    async def aclose(self) -> None:
        """Stops accepting. Accepted connections stay open."""
        for handle in self._paused.values():
            handle.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        # Let tasks that were just created start: a task that never started would leave its socket open.
        await asyncio.sleep(0)
        for task in self._entering:
            task.cancel()
        await asyncio.gather(*self._entering, return_exceptions=True)

    def _listen(self, listener: socket.socket) -> None:
        self._paused.pop(listener, None)
        self._loop.add_reader(listener, self._readable, listener)

    def _readable(self, listener: socket.socket) -> None:
        # As many as there are, like asyncio's own servers: one for each turn of a loop that sends to hundreds of clients would let the last ones wait for seconds.
        accepted = True
        while accepted:
            mine = self._counts[self._number] = self._open()
            if mine > min(self._counts):
                self._pause(listener, _BUSY_PAUSE, self._resume)
                return
            accepted = self._accept(listener)

    def _open(self) -> int:
        return self._connections() + len(self._entering)

    def _pause(self, listener: socket.socket, seconds: float, then: Callable[[socket.socket], None]) -> None:
        self._loop.remove_reader(listener)
        self._paused[listener] = self._loop.call_later(seconds, then, listener)

    def _resume(self, listener: socket.socket) -> None:
        self._listen(listener)
        self._accept(listener)

    def _wait_for_descriptors(self, listener: socket.socket, reason: str) -> None:
        if not self._full:
            self._full = True
            log.error(
                "accepting no connections for now: %s; %d are open, and the limit of descriptors (ulimit -n) is %d",
                reason,
                self._open(),
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                extra={"cause": reason},
            )
        # Down to where connections are accepted again.
        self._end_idle(max(self._open() - self._most * 9 // 10 + 1, 1))
        self._pause(listener, _FULL_PAUSE, self._listen)

    def _accept(self, listener: socket.socket) -> bool:
        """Accepts one connection. False if there is none, or too few descriptors."""
        if self._open() >= (self._most * 9 // 10 if self._full else self._most):
            self._wait_for_descriptors(listener, "too many are open")
            return False
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # Another worker was faster, or the client has left.
            return False
        except OSError as error:
            if error.errno not in _NO_FILES:
                raise
            self._wait_for_descriptors(listener, str(error.strerror))
            return False
        if self._full:
            self._full = False
            log.warning("accepting connections again: %d are open", self._open(), extra={"cause": "enough descriptors"})
        connection.setblocking(False)
        task = self._loop.create_task(self._enter(connection))
        self._entering.add(task)
        self._counts[self._number] += 1
        task.add_done_callback(self._entering.discard)
        return True

    async def _enter(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None and not await speaks_tls(connection):
                await refuse(connection)
                return
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            log.debug("a connection failed before its first request: %s", error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
