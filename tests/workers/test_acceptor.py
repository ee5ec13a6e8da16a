"""Where a worker takes connections."""

from __future__ import annotations

import asyncio
import mmap
import socket

from aiohttp import web

from mirror.workers.acceptor import Acceptor
from tests.support.patience import PATIENCE


async def answer(request: web.BaseRequest) -> web.Response:
    return web.Response()


async def test_what_comes_in_as_it_closes_is_served_or_closed() -> None:
    """No socket is left to itself, which its client would wait on."""
    server = web.Server(answer)
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(
        server, lambda: len(server.connections), lambda count: None, [listener], None, memoryview(mmap.mmap(-1, 8)).cast("q"), 0
    )
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        acceptor._accept(listener)
        await acceptor.aclose()
        await server.shutdown(1)
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_all_that_wait_are_taken_in_one_turn_of_the_loop() -> None:
    """A loop whose turns are long, since it sends to many, does not keep the last of a crowd waiting for as many turns as there are clients."""
    server = web.Server(answer)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    acceptor = Acceptor(
        server, lambda: len(server.connections), lambda count: None, [listener], None, memoryview(mmap.mmap(-1, 8)).cast("q"), 0
    )
    clients = [socket.create_connection(listener.getsockname()) for _ in range(32)]
    opened: list[int] = []

    def turn() -> None:
        acceptor._readable(listener)
        opened.append(acceptor._open())

    asyncio.get_running_loop().call_soon(turn)
    try:
        await asyncio.sleep(0)
        assert opened == [len(clients)]
    finally:
        for client in clients:
            client.close()
        await acceptor.aclose()
        await server.shutdown(1)


async def test_a_worker_that_has_more_than_another_leaves_the_next_to_it() -> None:
    """A crowd is shared between workers, not taken whole by the one that is awake first."""
    server = web.Server(answer)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    counts = memoryview(mmap.mmap(-1, 16)).cast("q")
    acceptor = Acceptor(server, lambda: len(server.connections), lambda count: None, [listener], None, counts, 0)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(8)]
    try:
        acceptor._readable(listener)
        assert list(counts) == [1, 0]
    finally:
        for client in clients:
            client.close()
        await acceptor.aclose()
        await server.shutdown(1)
