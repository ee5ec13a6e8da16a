"""A TCP proxy in user space that shares one link among all its connections, and counts the bytes."""

from __future__ import annotations

import asyncio
import threading
from typing import Self
from urllib.parse import urlsplit

_PIECE = 64 * 1024


class Link:
    """Runs in a thread of its own; `rate` in bytes per second for all connections together, None for no limit."""

    def __init__(self, target: str, rate: float | None) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname or "", parts.port or 80
        self._rate = rate
        self._free_at = 0.0
        self.received = 0
        """Bytes that came from the target."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        self._ready.wait(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pump(reader, back, False), self._pump(there, writer, True))
        except (OSError, asyncio.CancelledError):
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: bool) -> None:
        try:
            while data := await source.read(_PIECE):
                if counted:
                    self.received += len(data)
                    if self._rate is not None:
                        now = self._loop.time()
                        self._free_at = max(self._free_at, now) + len(data) / self._rate
                        await asyncio.sleep(self._free_at - now)
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()
