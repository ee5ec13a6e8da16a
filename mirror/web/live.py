"""What moves on the pages, by server-sent events (HTML, "Server-sent events"): however many look, it is looked up once a second, and not at all while nobody does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from aiohttp import web

from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_INTERVAL = 1.0
_KEEPALIVE = 15.0
"""Seconds of silence, after which a comment keeps proxies from hanging up."""
_PATIENCE = 20.0
"""Seconds for a listener to take what it is sent."""
_MOST = 100
_MOST_FROM_ONE = 20
"""Listeners from one address: people behind one NAT, with a page or two each."""
_RETRY = "retry: 3000\n\n"


class Live(Generic[_T]):
    """Listeners, each of which gets those parts of the page that have changed. A slow one misses some, and holds up nobody."""

    def __init__(self, look: Callable[[], Awaitable[_T]], draw: Callable[[_T, str], Mapping[str, str]]) -> None:
        """`look` finds how things stand; `draw` makes the parts of the page in a language, by the names of their elements."""
        self._look = look
        self._draw = draw
        self._listeners: Counter[str] = Counter()
        self._background_task = BackgroundTask(self._keep_watch)
        self._parts: dict[str, Mapping[str, str]] = {}
        self._state: _T | None = None
        self._news = asyncio.Event()
        self._closed = False

    async def serve(self, request: web.BaseRequest, language: str, headers: Mapping[str, str]) -> web.StreamResponse:
        """Sends until the listener leaves, or the mirror is stopped. Where there are too many, one more is asked to come again."""
        client = request.remote or ""
        if self._closed or self._listeners.total() >= _MOST or self._listeners[client] >= _MOST_FROM_ONE:
            return web.Response(status=503, headers={**headers, "Retry-After": "15"})
        # The last header is for nginx, which would keep the events to itself until it has some kilobytes of them.
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        self._listeners[client] += 1
        try:
            await response.prepare(request)
            await response.write(_RETRY.encode())
            self._background_task.start()
            await self._tell(response, language)
        except (OSError, TimeoutError):
            # It has left, or takes nothing.
            response.force_close()
        finally:
            self._listeners -= Counter((client,))
        return response

    async def aclose(self) -> None:
        """Ends all: a browser comes again when there is a mirror again."""
        self._closed = True
        self._ring()
        await self._background_task.aclose()

    async def _tell(self, response: web.StreamResponse, language: str) -> None:
        told: dict[str, str] = {}
        while not self._closed:
            news = self._news
            new = {name: part for name, part in self._drawn(language).items() if told.get(name) != part}
            if new:
                told.update(new)
                async with asyncio.timeout(_PATIENCE):
                    await response.write(f"data: {json.dumps(new)}\n\n".encode())
            try:
                async with asyncio.timeout(_KEEPALIVE):
                    while not self._closed and self._drawn(language).items() <= told.items():
                        await news.wait()
                        news = self._news
            except TimeoutError:
                async with asyncio.timeout(_PATIENCE):
                    await response.write(b": still here\n\n")

    def _drawn(self, language: str) -> Mapping[str, str]:
        if self._state is None:
            return {}
        if language not in self._parts:
            self._parts[language] = self._draw(self._state, language)
        return self._parts[language]

    async def _keep_watch(self) -> None:
        while self._listeners.total():
            try:
                self._state = await self._look()
                self._parts.clear()
            except Exception:
                log.exception("the dashboard's live part cannot be made")
            self._ring()
            await asyncio.sleep(_INTERVAL)
        self._state = None

    def _ring(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
