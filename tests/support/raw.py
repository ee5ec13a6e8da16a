"""A server that answers with given bytes, whatever HTTP they are."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

from yarl import URL

from mirror.upstream.transport import Connections, Timeouts, Transport


@dataclass
class Raw:
    """A listening server."""

    url: URL
    connections: int = 0
    requests: int = 0


@contextlib.asynccontextmanager
async def serving(answer: bytes, tls: ssl.SSLContext | None = None, *, close: bool = False) -> AsyncIterator[Raw]:
    """Answers every request with `answer`; with `close`, ends the connection after it."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        running.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                running.requests += 1
                writer.write(answer)
                await writer.drain()
                if close:
                    break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    host, port = server.sockets[0].getsockname()
    running = Raw(URL(f"{'http' if tls is None else 'https'}://{host}:{port}/"))
    try:
        yield running
    finally:
        server.close()
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def transport() -> AsyncIterator[Transport]:
    """A way to upstreams."""
    opened = Transport(Timeouts(2, 5, 1, 1), Connections(1, 1, 1))
    try:
        yield opened
    finally:
        await opened.aclose()
