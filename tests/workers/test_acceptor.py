"""Where a worker takes connections."""

from __future__ import annotations

import asyncio
import mmap
import socket

from aiohttp import web

from mirror.workers.acceptor import Acceptor


async def answer(request: web.BaseRequest) -> web.Response:
    return web.Response()


async def test_what_comes_in_as_it_closes_is_served_or_closed() -> None:
    """No socket is left to itself, which its client would wait on."""
    server = web.Server(answer)
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(server, lambda: len(server.connections), [listener], None, memoryview(mmap.mmap(-1, 8)).cast("q"), 0)
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        acceptor._accept(listener)
        await acceptor.aclose()
        await server.shutdown(1)
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
