"""Downloads that several workers share, whose clients ask different registries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.promises.test_workers import fetch
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Fault, Hold, Length, Rate, Scripted, Status

MIB = 1024 * 1024
SIZE = 2 * MIB


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    """The registry that has the faults."""
    async with Scripted() as scripted:
        yield scripted


@pytest.mark.parametrize(
    "fault",
    [lambda: Rate(2000.0), lambda: Hold(1000), lambda: Length(SIZE * 2), lambda: Status(403)],
    ids=["drips", "hangs", "lies", "refuses"],
)
async def test_a_registry_holds_nobody_elses_clients_whichever_worker_they_reach(
    upstream: Scripted, other: Scripted, tmp_path: Path, fault: Callable[[], Fault]
) -> None:
    """Twelve clients of a healthy registry over three workers, one of which downloads from another registry: their registry sends the bytes once."""
    blob = str(upstream.add_blob(data := os.urandom(SIZE)))
    other.add_blob(data)
    for method in ("GET", "HEAD"):
        other.fail(blob, *(fault() for _ in range(40)), method=method)
    upstreams: dict[str, str | list[str]] = {"docker.io": upstream.url, "other.example": other.url}
    with MirrorProcess(tmp_path / "cache", upstreams, SERVER__WORKERS="3") as mirror:
        async with aiohttp.ClientSession() as session:
            theirs = asyncio.create_task(session.get(f"{mirror.url}/v2/other.example/any/blobs/{blob}"))
            await until(lambda: other.count("GET", blob) > 0)
            ours = [asyncio.create_task(fetch(f"{mirror.url}/v2/app/blobs/{blob}")) for _ in range(12)]
            assert await asyncio.wait_for(asyncio.gather(*ours), PATIENCE) == [data] * 12
            assert upstream.sent[blob] <= 1.2 * SIZE
            assert upstream.count("GET", blob) <= 2
            assert upstream.count("HEAD", blob) <= 3
            (await theirs).close()
        other.heal()
        assert mirror.terminate() == 0
