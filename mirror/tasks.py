"""Tasks that outlive the callers that start them or wait for them, and closing several things."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AsyncExitStack
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")


async def close_all(*closers: Callable[[], Awaitable[object]]) -> None:
    """Calls all of them, one after the other, also where one raises. Raises the last exception in the end."""
    async with AsyncExitStack() as stack:
        for close in reversed(closers):
            stack.push_async_callback(close)


class BackgroundTask:
    """A coroutine that runs beside everything else. An exception is logged and ends it."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts it, unless it is running."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Cancels it and waits for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception:
            log.exception("a background task failed; everything else goes on")


class SingleFlight(Generic[_T]):
    """Duplicate suppression, as in Go's ``singleflight``: callers with the same key share one task, and its result."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[_T]] = {}

    def __len__(self) -> int:
        """The number of tasks that are running."""
        return len(self._tasks)

    def __contains__(self, key: Hashable) -> bool:
        """True while the task of `key` is running."""
        return key in self._tasks

    def start(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> tuple[asyncio.Task[_T], bool]:
        """Returns the task of `key`, started if there is none; and True if it was running already.

        Wait for it with `asyncio.shield` or `asyncio.wait`: a caller that is cancelled must not cancel it.
        """
        if (task := self._tasks.get(key)) is not None:
            return task, True
        task = asyncio.create_task(self._work(work), name=f"single flight {key}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task, False

    async def do(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> tuple[_T, bool]:
        """Returns the result of `key`'s task, and True if it was running already. Raises what the task raises."""
        task, joined = self.start(key, work)
        return await asyncio.shield(task), joined

    async def _work(self, work: Callable[[], Awaitable[_T]]) -> _T:
        return await work()

    def _ended(self, key: Hashable, task: asyncio.Task[_T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # All callers may have left: marks the exception as retrieved, so that asyncio does not log it.
            task.exception()

    async def aclose(self) -> None:
        """Cancels all tasks and waits for their end."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
