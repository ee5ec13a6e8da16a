"""Work in tasks that belong to the process: whoever began it, or waits for it, may leave, and it goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class BackgroundTask:
    """Work that nobody waits for. A failure ends it, is told of in the log, and is nobody else's affair."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins the work, where it is not under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Ends the work, where it is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception:
            log.exception("a chore has failed; everything else goes on")


class SingleFlight(Generic[_T]):
    """Work that several want at the same time, done once: at most one task a key."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[_T]] = {}

    def start(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> tuple[asyncio.Task[_T], bool]:
        """The task of `key`, begun where there is none. True with one that was there already.

        Wait for it with `asyncio.shield`, or `asyncio.wait`.
        """
        if (task := self._tasks.get(key)) is not None:
            return task, True
        task = asyncio.create_task(self._work(work), name=f"once {key}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task, False

    async def do(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> tuple[_T, bool]:
        """The result of `key`'s work, and whether it was under way already. Raises what it raises."""
        task, joined = self.start(key, work)
        return await asyncio.shield(task), joined

    async def _work(self, work: Callable[[], Awaitable[_T]]) -> _T:
        return await work()

    def _ended(self, key: Hashable, task: asyncio.Task[_T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # Nobody may be left to hear of it: that is no "exception was never retrieved".
            task.exception()

    async def aclose(self) -> None:
        """Ends all work."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
