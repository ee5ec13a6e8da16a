"""Runs blocking work that may hang, such as a name server or a network file system, with a time limit that holds at exit too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


async def within(seconds: float, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
    """Returns what `work` returns, run in a thread of its own. Raises what it raises, and TimeoutError after `seconds`; the thread is then abandoned."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: _T | None = None
        error: BaseException | None = None
        try:
            result = work(*arguments)
        except Exception as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # The loop is closed already.
            return

    # A daemon thread, because Python waits for asyncio's own threads at exit.
    threading.Thread(target=run, name=f"within {seconds:g} s", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await done
