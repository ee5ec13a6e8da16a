"""Live updates of pages, by server-sent events (HTML Standard, "Server-sent events").

The state is read once a second however many clients listen, and not at all while nobody does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from aiohttp import web

from mirror.api.client_network import client_network
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_INTERVAL = 1.0
_KEEPALIVE = 15.0
"""Seconds of silence after which a comment is sent, so that proxies do not close the connection."""
_WRITE_TIMEOUT = 20.0
"""Seconds for a listener to read what it is sent."""
_MOST = 100
_MOST_FROM_ONE = 20
"""Listeners from one address, which may be that of a network behind NAT."""
_RETRY = "retry: 3000\n\n"


class Live(Generic[_T]):
    """Sends each listener the parts of the page that have changed. A slow listener misses some changes, and delays nobody."""

    def __init__(self, read: Callable[[], Awaitable[_T]], render: Callable[[_T, str], Mapping[str, str]]) -> None:
        """`read` returns the current state; `render` makes the parts of the page in a language, by the IDs of their elements."""
        self._read = read
        self._render = render
        self._listeners: Counter[str] = Counter()
        self._updates = BackgroundTask(self._update)
        self._parts: dict[str, Mapping[str, str]] = {}
        self._state: _T | None = None
        self._changed = asyncio.Event()
        self._closed = False

    async def serve(self, request: web.BaseRequest, language: str, headers: Mapping[str, str]) -> web.StreamResponse:
        """Sends events until the listener leaves or the mirror stops. Answers 503 if there are too many listeners."""
        client = client_network(request.remote)
        if self._closed or self._listeners.total() >= _MOST or self._listeners[client] >= _MOST_FROM_ONE:
            return web.Response(status=503, headers={**headers, "Retry-After": "15"})
        # The last header is for nginx, which would buffer some kilobytes of events.
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        self._listeners[client] += 1
        try:
            await response.prepare(request)
            await response.write(_RETRY.encode())
            self._updates.start()
            await self._send_changes(response, language)
        except (OSError, TimeoutError):
            # The listener has left, or does not read.
            response.force_close()
        finally:
            self._listeners -= Counter((client,))
        return response

    async def aclose(self) -> None:
        """Ends all streams. Browsers connect again by themselves."""
        self._closed = True
        self._wake_listeners()
        await self._updates.aclose()

    async def _send_changes(self, response: web.StreamResponse, language: str) -> None:
        sent: dict[str, str] = {}
        while not self._closed:
            changed = self._changed
            new = {name: part for name, part in self._rendered(language).items() if sent.get(name) != part}
            if new:
                sent.update(new)
                async with asyncio.timeout(_WRITE_TIMEOUT):
                    await response.write(f"data: {json.dumps(new)}\n\n".encode())
            try:
                async with asyncio.timeout(_KEEPALIVE):
                    while not self._closed and self._rendered(language).items() <= sent.items():
                        await changed.wait()
                        changed = self._changed
            except TimeoutError:
                async with asyncio.timeout(_WRITE_TIMEOUT):
                    await response.write(b": still here\n\n")

    def _rendered(self, language: str) -> Mapping[str, str]:
        if self._state is None:
            return {}
        if language not in self._parts:
            self._parts[language] = self._render(self._state, language)
        return self._parts[language]

    async def _update(self) -> None:
        while self._listeners.total():
            try:
                self._state = await self._read()
                self._parts.clear()
            except Exception:
                log.exception("the live parts of the dashboard cannot be made")
            self._wake_listeners()
            await asyncio.sleep(_INTERVAL)
        self._state = None

    def _wake_listeners(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
