"""The measurements. The same clients for everybody, peer after peer in turn, medians of the rounds."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mirror.manifests import DOCKER_MANIFEST
from tests.benchmarks import peers as candidates
from tests.benchmarks.origin import REPOSITORY, Origin
from tests.benchmarks.peers import Peer
from tests.benchmarks.shaping import Link


@dataclass
class Scale:
    """How much of everything."""

    rounds: int = 5
    seconds: int = 3
    blob: int = 200_000_000
    shared: int = 50_000_000
    rate: float = 20e6
    huge: int = 1_000_000_000
    readers: int = 200
    cached: int = 100_000
    judged: bool = True
    """False for sizes at which the bars mean nothing."""


@dataclass
class Cold:
    """One cold fetch: seconds, and CPU seconds of the peer."""

    total: float
    first_byte: float
    cpu: float


@dataclass
class Crowd:
    """Many clients on one cold blob: bytes from upstream ÷ the blob's size; seconds until the last client had its first byte, and all."""

    fetched: float
    first_byte: float
    total: float


def in_turn(peers: list[Peer], rounds: int, measure: Callable[[Peer], float]) -> dict[str, float]:
    """Medians by peer."""
    found: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            found[peer.name].append(measure(peer))
    return {name: statistics.median(values) for name, values in found.items()}


def requests_per_second(peer: Peer, path: str, seconds: int) -> float:
    done = subprocess.run(
        ["wrk", "-t1", "-c32", f"-d{seconds}s", "-H", f"Accept: {DOCKER_MANIFEST}", f"{peer.url}{path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    answered = int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    good = answered - (int(refused[1]) if refused else 0)
    return good / seconds


def throughput(peer: Peer, digest: str, size: int, clients: int) -> float:
    """Bytes per second, of all clients together."""
    url = f"{peer.url}/v2/{REPOSITORY}/blobs/{digest}"
    began = time.perf_counter()
    running = [
        subprocess.Popen(["curl", "-sf", "-o", "/dev/null", "-w", "%{size_download}", url], stdout=subprocess.PIPE)
        for _ in range(clients)
    ]
    got = [int(curl.communicate()[0]) for curl in running]
    seconds = time.perf_counter() - began
    if got != [size] * clients:
        raise RuntimeError(f"{peer.name} gave {got} of {size} bytes")
    return size * clients / seconds


def fetch(url: str) -> tuple[float, float, str]:
    """A client that hashes what it gets: seconds in all, seconds to the first byte of the body, the digest."""
    parts = urlsplit(url)
    began = time.perf_counter()
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        buffer = bytearray(1024 * 1024)
        view, hasher, head, first = memoryview(buffer), hashlib.sha256(), b"", 0.0
        while count := connection.recv_into(buffer):
            if first:
                hasher.update(view[:count])
                continue
            head += view[:count]
            _, end, body = head.partition(b"\r\n\r\n")
            if end and body:
                first = time.perf_counter() - began
                hasher.update(body)
        return time.perf_counter() - began, first, f"sha256:{hasher.hexdigest()}"


def cold(peer: Peer, origin: Origin, size: int) -> Cold:
    digest = origin.add_blob(size)
    _settle()
    before = peer.cpu_seconds()
    total, first, got = fetch(f"{peer.url}/v2/{REPOSITORY}/blobs/{digest}")
    if got != digest:
        raise RuntimeError(f"{peer.name} gave wrong bytes")
    time.sleep(0.3)
    return Cold(total, first, peer.cpu_seconds() - before)


def _settle() -> None:
    """The same start for everybody: a disk that has nothing left to write, and memory that has been touched.

    A virtual machine's host hands out memory a page at a time: pages that were never touched are ten times as slow to write to, the page cache's
    too, and who gets them is chance.
    """
    os.sync()
    available = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")
    )
    subprocess.run([sys.executable, "-c", f"bytearray(b'x') * {min(4 * 10**9, available // 4)}"], check=True)


def colds(peers: list[Peer], origin: Origin, size: int, rounds: int) -> dict[str, Cold]:
    """Medians by peer."""
    found: dict[str, list[Cold]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            found[peer.name].append(cold(peer, origin, size))
    return {
        name: Cold(*(statistics.median(getattr(one, field) for one in all_) for field in ("total", "first_byte", "cpu")))
        for name, all_ in found.items()
    }


def crowd(folder: Path, origin: Origin, size: int, rate: float, clients: int = 10) -> dict[str, Crowd]:
    """By peer: so many clients at once on one cold blob, behind a link of `rate` bytes per second."""
    found = {}
    with Link(origin.url, rate) as link, candidates.side_by_side(folder, link.url) as peers, ThreadPoolExecutor(clients) as pool:
        for peer in peers:
            digest = origin.add_blob(size)
            before = link.received
            began = time.perf_counter()
            got = list(pool.map(fetch, [f"{peer.url}/v2/{REPOSITORY}/blobs/{digest}"] * clients))
            seconds = time.perf_counter() - began
            if wrong := sum(one[2] != digest for one in got):
                print(f"note: {peer.name} gave {wrong} of {clients} clients a body that is not whole", file=sys.stderr)
            _until_quiet(link)
            found[peer.name] = Crowd((link.received - before) / size, max(one[1] for one in got), seconds)
    return found


def _until_quiet(link: Link) -> None:
    """Waits, a minute at most, for a second in which nothing came: some peers go on fetching when their clients have left."""
    for _ in range(60):
        seen = link.received
        time.sleep(1)
        if link.received == seen:
            return


def memory_with_readers(folder: Path, origin: Origin, size: int, readers: int) -> dict[str, float]:
    """Bytes resident at most with so many clients on one blob: while it comes in, and once it is cached."""
    folder.mkdir()
    found = {}
    with candidates.mirror(folder, origin.url) as peer:
        url = f"{peer.url}/v2/{REPOSITORY}/blobs/{origin.add_blob(size)}"
        for state in ("cold", "warm"):
            peer.forget_peak()
            running = [subprocess.Popen(["curl", "-sf", "--limit-rate", "400M", "-o", "/dev/null", url]) for _ in range(readers)]
            statuses = [curl.wait() for curl in running]
            if any(statuses):
                raise RuntimeError("a client did not get the blob")
            found[state] = float(peer.peak_memory())
    return found


def start_with(folder: Path, origin: Origin, blobs: int) -> float:
    """Seconds from the start until /readyz is 200, with so many cached blobs."""
    cache = folder / "cache" / "blobs" / "sha256"
    cache.mkdir(parents=True)
    for number in range(blobs):
        data = b"%d" % number
        fd = os.open(cache / hashlib.sha256(data).hexdigest(), os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, data)
        os.close(fd)
    with candidates.mirror(folder, origin.url) as peer:
        # The first start takes the files into the catalog, behind the scenes.
        deadline = time.monotonic() + 300
        while _metric(peer, "mirror_cache_blobs") < blobs and time.monotonic() < deadline:
            time.sleep(0.5)
    began = time.perf_counter()
    with candidates.mirror(folder, origin.url) as peer, urllib.request.urlopen(f"{peer.url}/readyz") as answer:
        assert answer.status == 200
        return time.perf_counter() - began


def _metric(peer: Peer, name: str) -> float:
    with urllib.request.urlopen(f"{peer.url}/metrics") as answer:
        return next(float(line.split()[1]) for line in answer.read().decode().splitlines() if line.startswith(f"{name} "))
