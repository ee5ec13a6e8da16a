"""Blocking work on files, in threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from hashlib import _Hash

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_BUFFER = 1024 * 1024


class Disk:
    """A small pool of threads for what would hold up the event loop."""

    def __init__(self, threads: int = 16) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk")

    async def run(self, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs `work` in a thread. When cancelled, waits for its end first: a thread must never outlive the file it works on."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()
            raise

    def close(self) -> None:
        self._pool.shutdown()


def hash_file(hasher: _Hash, fd: int, start: int, end: int) -> int:
    """Feeds the bytes ``[start, end)`` of a file to `hasher`, without the GIL for the most part. Returns how far it came."""
    view = memoryview(bytearray(min(_BUFFER, end - start)))
    while start < end:
        count = os.preadv(fd, [view[: end - start]], start)
        if count == 0:
            break
        hasher.update(view[:count])
        start += count
    return start
