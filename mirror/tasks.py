"""Tasks that belong to the process: a caller that starts one, or waits for one, may be cancelled without ending it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class BackgroundTask:
    """Work that nobody waits for. A failure is logged and ends it."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the work, unless it is running."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Cancels the work and waits for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception:
            log.exception("a background task failed; everything else goes on")


class SingleFlight(Generic[_T]):
    """Duplicate suppression: callers that want the same key at the same time share one task (as Go's singleflight)."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[_T]] = {}

    def start(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> tuple[asyncio.Task[_T], bool]:
        """The task of `key`, started if there is none; True if it was running already.

        Wait for it with `asyncio.shield`, or `asyncio.wait`.
        """
        if (task := self._tasks.get(key)) is not None:
            return task, True
        task = asyncio.create_task(self._work(work), name=f"once {key}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task, False

    async def do(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> tuple[_T, bool]:
        """The result of `key`'s work, and whether it was running already. Raises what the work raises."""
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
        """Cancels all tasks and waits for their end."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
