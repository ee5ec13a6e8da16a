"""Clients that do not read cost next to nothing."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

CLIENTS = 30


def resident(pid: int) -> int:
    """The memory of a process that is in RAM, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1000


async def test_clients_that_do_not_read_a_list_share_it(upstream: Scripted, tmp_path: Path) -> None:
    """30 clients ask for a list of 12 MB, read its headers, and no more: the process grows by a few lists, not by thirty; upstream is asked once."""
    upstream.manifests |= {("library/app", f"{number:0100d}"): ("", b"") for number in range(120_000)}
    loop = asyncio.get_running_loop()
    mirror = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url})
    await asyncio.to_thread(mirror.start)
    clients: list[socket.socket] = []
    try:
        before = resident(mirror.pid)
        host, port = mirror.url.removeprefix("http://").rsplit(":", 1)
        for _ in range(CLIENTS):
            client = socket.socket()
            clients.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            client.setblocking(False)
            await loop.sock_connect(client, (host, int(port)))
            await loop.sock_sendall(client, b"GET /v2/app/tags/list HTTP/1.1\r\nHost: mirror\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            for client in clients:
                assert (await loop.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200 ")
        assert resident(mirror.pid) - before < 150
        assert upstream.count("GET", "/tags/list") == 1
    finally:
        for client in clients:
            client.close()
        mirror.kill()
