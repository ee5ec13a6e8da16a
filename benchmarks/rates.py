"""How well a cap on the rate is kept: ``python -m benchmarks.rates``.

Three clients download a blob each, for ten seconds, from a mirror with `upstream.max_rate`, in front of a registry without limits. What counts is what clients
got, and what the registry has sent over the wire.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import aiohttp

from mirror import app
from mirror.config import load
from tests.support.scripted import Scripted

_SECONDS = 10.0
_BLOBS = 3


async def measure(rate: int) -> tuple[list[int], int]:
    """Returns the bytes that each client got, and the bytes that the mirror's kernel has received from upstream."""
    async with Scripted() as upstream:
        size = int(rate * _SECONDS)
        digests = [upstream.add_blob(os.urandom(size)) for _ in range(_BLOBS)]
        with tempfile.TemporaryDirectory() as folder:
            tree = {
                "server": {"listen": "127.0.0.1:0", "access_log": False, "drain_timeout": 1},
                "cache": {"dir": str(Path(folder) / "cache"), "prefetch": False},
                "upstream": {"max_rate": rate},
                "registries": {"docker.io": {"endpoints": [upstream.url]}},
            }
            async with app.running(load(None, {}, tree)) as url, aiohttp.ClientSession(url) as session:
                got = [0] * _BLOBS
                sent = 0
                end = time.monotonic() + _SECONDS

                async def client(number: int) -> None:
                    async with session.get(f"/v2/library/app/blobs/{digests[number]}") as answer:
                        async for data in answer.content.iter_any():
                            if time.monotonic() > end:
                                break
                            got[number] += len(data)

                async def look() -> None:
                    nonlocal sent
                    await asyncio.sleep(_SECONDS)
                    sent = upstream.acknowledged

                await asyncio.gather(look(), *(client(number) for number in range(_BLOBS)))
                return got, sent


def main() -> None:
    """Prints a line for each rate."""
    for rate in (200_000, 2_000_000, 20_000_000, 100_000_000):
        got, sent = asyncio.run(measure(rate))
        expected = rate * _SECONDS
        shares = ", ".join(f"{one / sum(got):.1%}" for one in got)
        print(
            f"{rate / 1e6:g} MB/s: clients got {sum(got) / expected:.1%} of it, shares {shares}; upstream sent {sent / expected:.1%}"
        )


if __name__ == "__main__":
    main()
