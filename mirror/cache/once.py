"""Work that several want at the same time, done once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Once(Generic[_T]):
    """At most one task a key. The tasks belong to the process: whoever waits may leave, and the work goes on."""

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
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
