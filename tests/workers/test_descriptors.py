"""Out of descriptors: connections wait, the log says it once, and everything goes on when there are some again."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_idle_clients_beyond_the_limit_of_descriptors_keep_nobody_out(tmp_path: Path, workers: str) -> None:
    """400 idle clients, 256 descriptors: a line in the log for each process, not one for each attempt; who has something to ask is answered while they stay."""
    limited = MirrorProcess(tmp_path / "cache", {}, "--workers", workers).limit_descriptors(256 // int(workers))

    def answered() -> int:
        with urllib.request.urlopen(f"{mirror.url}/healthz", timeout=PATIENCE) as response:
            return int(response.status)

    with limited as mirror:
        host, port = mirror.url.removeprefix("http://").rsplit(":", 1)
        clients = []
        try:
            for _ in range(400):
                client = socket.socket()
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
                clients.append(client)
            await until(lambda: mirror.log.count("accepting no connections") >= int(workers))
            # Many attempts later.
            await asyncio.sleep(1)
            assert mirror.log.count("accepting no connections") == int(workers)
            assert await asyncio.to_thread(answered) == 200
            assert len(mirror.log) < 20_000
        finally:
            for client in clients:
                client.close()
        assert await asyncio.to_thread(answered) == 200
        assert "accepting connections again" in mirror.log
