"""Blocking work on files, in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class ThreadPool:
    """A small pool of threads for what would hold up the event loop."""

    def __init__(self, threads: int = 16) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk")

    async def run(self, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs `work` in a thread. When cancelled, waits for its end first: a thread must never outlive the file it works on."""
        # In a copy of the caller's context, which says what locks it holds.
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._pool, context.run, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await ended(future)
            raise

    def close(self) -> None:
        self._pool.shutdown()


async def ended(future: asyncio.Future[_T]) -> None:
    """Waits until a thread has done its work, whatever came of it, and however often the caller is cancelled meanwhile."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()
