"""Blocking work in threads: on files, and what a library asks of the network."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_TICK = 0.02
"""Seconds between two looks whether threads have ended."""


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


class RequestThreads:
    """A small pool of threads for a library's blocking requests, which cannot be cancelled and may hang for long. Nothing but memory may be in their hands: the end of
    the process does not wait for them."""

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._threads: list[Thread] = []
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._under_way = 0
        self._given_up: asyncio.Future[None] | None = None

    async def run(self, work: Callable[[*_Ts], _T], *arguments: *_Ts, wait: bool = True) -> _T:
        """Runs `work` in a thread. When cancelled, `wait`s for its end first, unless all is given up: what is begun anew then must come after it."""
        loop = asyncio.get_running_loop()
        if self._given_up is None:
            self._given_up = loop.create_future()
        done: asyncio.Future[_T] = loop.create_future()

        def job() -> None:
            if done.cancelled():
                return
            result: Any = None
            fault: BaseException | None = None
            try:
                result = work(*arguments)
            except BaseException as error:
                fault = error
            # Else the loop has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, result, fault)

        self._under_way += 1
        done.add_done_callback(self._ended)
        if self._under_way > len(self._threads) and len(self._threads) < self._most:
            thread = Thread(target=self._work, name="request", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._waiting.put(job)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            either: list[asyncio.Future[Any]] = [done, self._given_up]
            while wait and not any(one.done() for one in either):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            raise

    def _ended(self, done: asyncio.Future[Any]) -> None:
        self._under_way -= 1
        if not done.cancelled():
            # Nobody may wait for it any more.
            done.exception()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            job()

    def give_up(self, seconds: float) -> None:
        """Has nobody wait for what is under way for more than so many `seconds`."""
        if self._given_up is not None and not self._given_up.done():
            asyncio.get_running_loop().call_later(seconds, _settle, self._given_up, None, None)

    async def aclose(self, seconds: float) -> None:
        """Ends the threads; what takes more than so many `seconds` is left alone."""
        for _ in self._threads:
            self._waiting.put(None)
        end = time.monotonic() + seconds
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < end:
            await asyncio.sleep(_TICK)


def _settle(done: asyncio.Future[Any], result: Any, fault: BaseException | None) -> None:
    if done.done():
        return
    if fault is None:
        done.set_result(result)
    else:
        done.set_exception(fault)


async def ended(future: asyncio.Future[_T]) -> None:
    """Waits until a thread has done its work, whatever came of it, and however often the caller is cancelled meanwhile."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()
