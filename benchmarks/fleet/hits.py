"""What a hit costs a mirror of a fleet beside one that is alone.

CPU seconds of the mirrors' processes, as the kernel counts them, in turns on one connection each; the medians of rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import statistics
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.fleet.network import mirrors
from tests.support.mirrors import MirrorProcess
from tests.support.scripted import Scripted

_REQUESTS = 2000


def _cpu(pid: int) -> float:
    """Seconds of all threads of a process."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _ask(url: str, path: str) -> None:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc)) as connection:
        for _ in range(_REQUESTS):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()


async def measure(rounds: int) -> None:
    """Prints a line for each kind of request."""
    async with Scripted() as upstream:
        image = upstream.add_image("library/app", "1", layers=[os.urandom(20_000)])
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            alone = stack.enter_context(MirrorProcess(Path(folder) / "alone", {"docker.io": upstream.url}))
            member, *_ = stack.enter_context(mirrors(3, Path(folder), upstream.url))
            paths = {"tag": "/v2/library/app/manifests/1", "layer of 20 kB": f"/v2/library/app/blobs/{image.layers[0]}"}
            for name, path in paths.items():
                costs: dict[MirrorProcess, list[float]] = {alone: [], member: []}
                for number in range(rounds + 1):
                    for mirror in (alone, member) if number % 2 else (member, alone):
                        began = _cpu(mirror.pid)
                        await asyncio.to_thread(_ask, mirror.url, path)
                        if number:
                            costs[mirror].append((_cpu(mirror.pid) - began) / _REQUESTS)
                one, fleet = (statistics.median(costs[mirror]) * 1e6 for mirror in (alone, member))
                ratio = statistics.median(b / a for a, b in zip(costs[alone], costs[member], strict=True))
                print(f"{name}: alone {one:.1f} µs, in a fleet {fleet:.1f} µs: {ratio:.3f} (bar 1.02)", flush=True)
