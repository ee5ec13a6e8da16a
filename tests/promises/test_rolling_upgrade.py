"""A fleet is upgraded one mirror after the other while clients that know all of them go on pulling."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp

from mirror.names import Digest
from tests.promises.test_fleet import processes
from tests.support.mirrors import until
from tests.support.scripted import Scripted

MIB = 1024 * 1024
SIZE = MIB


async def pull(session: aiohttp.ClientSession, urls: list[str], digest: Digest) -> str:
    """As containerd does: on to the next host where one does not answer or answers 5xx. Returns who gave it whole; fails where nobody does, or a body is cut short."""
    for url in urls:
        try:
            response = await session.get(f"{url}/v2/library/app/blobs/{digest}")
        except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, ConnectionResetError):
            continue
        async with response:
            if response.status < 500:
                assert Digest.of(await response.read()) == digest, f"{url} answered {response.status}"
                return url
    raise AssertionError("no mirror has answered")


async def test_no_client_notices_that_one_mirror_after_the_other_is_restarted(upstream: Scripted, tmp_path: Path) -> None:
    """By SIGTERM, in the middle of downloads: what has begun is brought to its end, and new requests go to the next one. Upstream sends little more than it would have."""
    upstream.rate = 8 * MIB
    pulled: list[str] = []
    with processes(tmp_path, {"docker.io": upstream.url}) as fleet:
        urls = list(fleet)
        over = asyncio.Event()
        asked: dict[Digest, int] = {}

        async def client(number: int) -> None:
            # `mirror configure` rotates the list for each machine.
            order = urls[number % 3 :] + urls[: number % 3]
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
                while not over.is_set():
                    if number < 3 or not asked:
                        asked[upstream.add_blob(os.urandom(SIZE))] = 0
                    digest = list(asked)[-1 - len(pulled) % min(len(asked), 3)]
                    pulled.append(await pull(session, order, digest))
                    # As fast as a client's disk.
                    await asyncio.sleep(0.05)

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        for process in fleet.values():
            before = len(pulled)
            await until(lambda before=before: len(pulled) >= before + 4 or any(task.done() for task in clients))
            assert await asyncio.to_thread(process.terminate) == 0
            gone = len(pulled)
            await until(lambda gone=gone: len(pulled) >= gone + 4 or any(task.done() for task in clients))
            await asyncio.to_thread(process.start)
        over.set()
        await asyncio.gather(*clients)
        assert set(pulled) == set(urls)
        sent = sum(upstream.sent.get(str(digest), 0) for digest in asked)
        assert sent <= 1.5 * SIZE * len(asked)
