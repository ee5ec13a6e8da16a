"""Three mirrors beside one, each with a network card of its own.

Thirty clients ask for one blob at once, of which no mirror has a byte. In a network namespace of its own, `tc` lets each mirror's port send no more than a card
does. The card is shared as Debian's default (fq_codel) shares one: evenly between connections. With `fifo` it is one queue, in which connections with larger
windows get more, as on a switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.network import mirrors, set_up
from mirror.upstream.fleet import ranked
from tests.support.scripted import Scripted

_CARD = 60_000_000
"""Bytes per second."""
_CLIENTS = 30
_CURL = ("curl", "-s", "-f", "-o", "/dev/null", "-w", "%{size_download}", "--connect-timeout", "2", "--speed-time", "20")


@dataclass(frozen=True)
class Result:
    """Of one crowd."""

    seconds: float
    """Until the last client had all bytes."""
    upstream: float
    """Bytes that the registry sent, as a multiple of the blob's."""
    failed: int
    """Clients that did not get it."""


async def _pull(urls: Sequence[str], path: str) -> bool:
    """Asks one mirror after the other, as containerd does with several hosts, and what is cut off is resumed there. Returns False if none gave it."""
    got = 0
    for url in (*urls, *urls):
        process = await asyncio.create_subprocess_exec(
            *_CURL, "-r", f"{got}-", url + path, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        told, _ = await process.communicate()
        if process.returncode == 0:
            return True
        got += int(told)
    return False


async def crowd(count: int, size: int, *, fifo: bool = False, end_home: signal.Signals | None = None, at: float = 0.0) -> Result:
    """Has all clients pull from `count` mirrors. The blob's home gets a signal before it, or when they have the share `at` of their bytes."""
    async with Scripted() as upstream:
        digest = upstream.add_blob(os.urandom(size))
        path = f"/v2/library/app/blobs/{digest}"
        with tempfile.TemporaryDirectory() as folder, mirrors(count, Path(folder), upstream.url) as running:
            urls = [mirror.url for mirror in running]
            set_up(dict.fromkeys(urls, _CARD), fifo=fifo)
            home = running[urls.index(ranked(tuple(urls), str(digest))[0])]
            if end_home is not None and not at:
                os.kill(home.pid, end_home)
                # How long clients wait for one that answers nothing is theirs.
                urls.remove(home.url)
            began = time.monotonic()
            orders = [urls[number % len(urls) :] + urls[: number % len(urls)] for number in range(_CLIENTS)]
            pulls = [asyncio.create_task(_pull(order, path)) for order in orders]
            if end_home is not None and at:
                while sum(mirror.metric("registry_proxy_pushed_bytes_total") for mirror in running) < at * size * _CLIENTS:
                    await asyncio.sleep(0.1)
                os.kill(home.pid, end_home)
            got = await asyncio.gather(*pulls)
            seconds = time.monotonic() - began
            with contextlib.suppress(ProcessLookupError):
                os.kill(home.pid, signal.SIGCONT)
        return Result(seconds, upstream.sent[str(digest)] / size, got.count(False))


async def measure(rounds: int, size: int, *, fifo: bool) -> None:
    """Prints a line for each crowd; `size` is in bytes."""
    ratios = []
    for number in range(rounds):
        one, three = await crowd(1, size, fifo=fifo), await crowd(3, size, fifo=fifo)
        ratios.append(one.seconds / three.seconds)
        print(
            f"round {number + 1}: one mirror {one.seconds:.1f} s, three {three.seconds:.1f} s: {ratios[-1]:.2f} times as fast; upstream sent {three.upstream:.2f} times the blob;"
            f" {one.failed + three.failed} clients failed",
            flush=True,
        )
    print(f"three mirrors ÷ one, median: {statistics.median(ratios):.2f} (bar 2.4)", flush=True)
    for name, count, how, at in (
        ("home killed at half", 3, signal.SIGKILL, 0.5),
        ("home stopped before", 3, signal.SIGSTOP, 0.0),
        ("two mirrors, for comparison", 2, None, 0.0),
    ):
        found = [await crowd(count, size, fifo=fifo, end_home=how, at=at) for _ in range(rounds)]
        print(
            f"{name}, median: {statistics.median(one.seconds for one in found):.1f} s; at most, upstream sent {max(one.upstream for one in found):.2f} times the blob;"
            f" {sum(one.failed for one in found)} clients failed",
            flush=True,
        )
