"""Work that may hang, such as a name server or a network's file system: nobody waits for it longer than is said, not even the program's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


async def within(seconds: float, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
    """Runs `work` in a thread of its own. Raises what it raises, and TimeoutError when it takes longer; the thread is left to itself then."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def tell(result: _T | None, error: BaseException | None) -> None:
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
            loop.call_soon_threadsafe(tell, result, error)
        except RuntimeError:
            # Too late: the loop is closed.
            return

    # asyncio's own threads are waited for when the program ends.
    threading.Thread(target=run, name=f"within {seconds:g} s", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await done
