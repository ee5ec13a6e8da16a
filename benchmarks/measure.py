"""How a scenario is measured: the contenders in turn or together, the same clients for everybody, medians of the rounds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.clients import Client, Pull, pull
from benchmarks.origin import BLOBS, REPOSITORY, Image, Origin
from benchmarks.peers import OWN, Peer, start
from benchmarks.pushes import CONFIG_TYPE, Push, push
from benchmarks.scenarios import Kind, Scenario
from benchmarks.shaping import CLEAN, Link
from benchmarks.tls import TlsFront
from mirror.manifests import DOCKER_MANIFEST, OCI_MANIFEST
from tests.e2e.test_dockerd import Dockerd
from tests.support.filled import fill
from tests.support.images import digest_of, send

_TAGS_AT_ONCE = 20
"""Tags that one request gives a manifest."""


@dataclass
class Figures:
    """What was measured of one contender; None where it does not apply or was not reached."""

    seconds: float | None = None
    """Until the last client was done."""
    first_byte: float | None = None
    """Seconds, of the first client."""
    last_first_byte: float | None = None
    """Seconds, of the last client."""
    upstream: float | None = None
    """Bytes that came over the link ÷ bytes of the image."""
    cpu_per_gb: float | None = None
    """CPU seconds for each 10⁹ bytes given to clients."""
    cpu_per_request: float | None = None
    """CPU seconds for each 10⁶ requests."""
    cpu_ratio: float | None = None
    """One of the two, divided by the mirror's in the same round: machines are faster and slower for seconds on end."""
    memory: float | None = None
    """MB (10⁶ bytes) resident at most."""
    rate: float | None = None
    """MB per second of all clients together, or requests per second."""
    note: str = ""


@dataclass
class _Place:
    """A contender at work."""

    name: str
    peer: Peer
    link: Link | None


def measure(scenario: Scenario, origin: Origin, contenders: Sequence[str], workers: int | None) -> dict[str, Figures]:
    """By contender. Raises RuntimeError where one cannot even be filled."""
    if scenario.kind is Kind.START:
        return {OWN: _ready(scenario.cached)}
    if scenario.kind is Kind.TAGS:
        return {OWN: _tags(scenario.cached, scenario.rounds)}
    with _places(scenario, origin, contenders, workers) as places:
        take = {Kind.PULL: _pull, Kind.DOCKERD: _dockerd, Kind.PUSH: _push}.get(scenario.kind, _ask)
        pushes = scenario.kind is Kind.PUSH
        image = origin.add_image(scenario.layers, 1 if pushes else scenario.size // scenario.layers)
        if scenario.warm:
            for place in places:
                (client,) = pull(_task(replace(scenario, clients=1, hashed=1), image, place.peer))
                if client.done is None:
                    raise RuntimeError(f"{place.name} did not give an image at all: {client.fault}")
        found: dict[str, list[Figures]] = {place.name: [] for place in places}
        for number in range(scenario.rounds):
            if number and scenario.kind is Kind.PULL and not scenario.warm:
                image = origin.add_image(scenario.layers, scenario.size // scenario.layers)
            if scenario.together:
                with ThreadPoolExecutor(len(places)) as pool:
                    taken = list(pool.map(lambda place, image=image: take(scenario, image, place), places))
                for place, figures in zip(places, taken, strict=True):
                    found[place.name].append(figures)
                continue
            # Nobody is always the first.
            for place in places[number % len(places) :] + places[: number % len(places)]:
                if not scenario.warm and (pushes or scenario.kind is Kind.PULL):
                    _settle(20 * scenario.size)
                found[place.name].append(take(scenario, image, place))
    for name, rounds in found.items():
        for one, own in zip(rounds, found.get(OWN, []), strict=False):
            cpu, own_cpu = (figures.cpu_per_request or figures.cpu_per_gb for figures in (one, own))
            one.cpu_ratio = cpu / own_cpu if name != OWN and cpu and own_cpu else None
    return {name: _median(rounds) for name, rounds in found.items()}


@contextmanager
def _places(scenario: Scenario, origin: Origin, contenders: Sequence[str], workers: int | None) -> Iterator[list[_Place]]:
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix=f"mirror-bench-{scenario.name}-")))
        places = []
        front = running.enter_context(TlsFront(origin, folder / "tls")) if scenario.tls else None
        for number, name in enumerate(contenders):
            link = running.enter_context(Link(origin.url, scenario.shape)) if scenario.shape != CLEAN else None
            if scenario.cached:
                fill(folder / str(number) / "cache", scenario.cached // 3)
            upstream = link.url if link else front.url if front else None if scenario.kind is Kind.PUSH else origin.url
            peer = start(name, folder / str(number), upstream, workers, front.environment if front else {})
            places.append(_Place(name, running.enter_context(peer), link))
        yield places


def _median(rounds: list[Figures]) -> Figures:
    merged = Figures(note="; ".join(sorted({one.note for one in rounds if one.note})))
    for field in fields(Figures):
        values = [getattr(one, field.name) for one in rounds]
        if field.name != "note" and None not in values:
            setattr(merged, field.name, statistics.median(values))
    return merged


def _task(scenario: Scenario, image: Image, peer: Peer) -> Pull:
    manifest = image.manifest(image.tag) if len(image.layers) > 1 else None
    return Pull(peer.url, manifest, image.layers, BLOBS, scenario.clients, scenario.hashed, scenario.limit)


def _pull(scenario: Scenario, image: Image, place: _Place) -> Figures:
    peer, link = place.peer, place.link
    peer.forget_peak()
    received, cpu = link.received if link else 0, peer.cpu_seconds()
    clients = pull(_task(scenario, image, peer))
    figures = Figures()
    done = [client.done for client in clients if client.done is not None]
    if link is not None:
        if len(done) == len(clients):
            _until_quiet(link)
        figures.upstream = (link.received - received) / image.size
    else:
        # What is done after the last byte belongs to the pull too.
        time.sleep(0 if scenario.warm else 0.3)
    figures.note = _note(clients, scenario)
    first_bytes = [client.first_byte for client in clients if client.first_byte is not None]
    if first_bytes:
        figures.first_byte = min(first_bytes)
    if len(first_bytes) == len(clients):
        figures.last_first_byte = max(first_bytes)
    _note_cost(figures, peer, cpu, done if len(done) == len(clients) else [], image.size * len(clients))
    return figures


def _note_cost(figures: Figures, peer: Peer, cpu: float | None, done: Sequence[float], given: int) -> None:
    """`cpu` is what the peer had used before, `done` when each client was, empty if one was not; `given` is in bytes."""
    if (memory := peer.peak_memory()) is not None:
        figures.memory = memory / 1e6
    if done:
        figures.seconds = max(done)
        figures.rate = given / figures.seconds / 1e6
        if cpu is not None:
            figures.cpu_per_gb = ((peer.cpu_seconds() or 0) - cpu) / given * 1e9


def _push(scenario: Scenario, image: Image, place: _Place) -> Figures:
    """Every client an image of its own, to repositories of its own."""
    peer = place.peer
    peer.forget_peak()
    cpu = peer.cpu_seconds()
    clients = push(Push(peer.url, f"bench/{time.monotonic_ns()}-", scenario.size, scenario.clients, scenario.limit))
    figures, done = Figures(), [client.done for client in clients if client.done is not None]
    if faults := [client.fault for client in clients if client.fault]:
        figures.note = f"{len(faults)} failed, the first with {faults[0]}"
    _note_cost(figures, peer, cpu, done if len(done) == len(clients) else [], scenario.size * len(clients))
    return figures


def _tags(count: int, rounds: int) -> Figures:
    """How long the slowest takes of: push a tag, list a page of a hundred, delete a tag, where a repository has `count` tags; each a median."""
    with tempfile.TemporaryDirectory(prefix="mirror-bench-tags-") as folder, start(OWN, Path(folder), None) as peer:
        config = send("POST", f"{peer.url}/v2/bench/app/blobs/uploads/?digest={digest_of(b'{}')}", b"{}", {})
        config.close()
        described = {"mediaType": CONFIG_TYPE, "digest": digest_of(b"{}"), "size": 2}
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []}).encode()
        manifests = f"{peer.url}/v2/bench/app/manifests"

        def seconds(method: str, url: str, data: bytes = b"") -> float:
            began = time.perf_counter()
            with send(method, url, data, {"Content-Type": OCI_MANIFEST}) as answer:
                answer.read()
            return time.perf_counter() - began

        for first in range(0, count, _TAGS_AT_ONCE):
            tags = "&".join(f"tag=tag-{number:06}" for number in range(first, min(first + _TAGS_AT_ONCE, count)))
            seconds("PUT", f"{manifests}/{digest_of(body)}?{tags}", body)
        taken: dict[str, list[float]] = {"push": [], "page": [], "delete": []}
        for number in range(rounds):
            taken["push"].append(seconds("PUT", f"{manifests}/new-{number}", body))
            last = f"tag-{count * number // rounds:06}"
            taken["page"].append(seconds("GET", f"{peer.url}/v2/bench/app/tags/list?n=100&last={last}"))
            taken["delete"].append(seconds("DELETE", f"{manifests}/new-{number}"))
    medians = {what: statistics.median(found) for what, found in taken.items()}
    return Figures(
        seconds=max(medians.values()), note=", ".join(f"{what} {found * 1000:.1f} ms" for what, found in medians.items())
    )


def _note(clients: list[Client], scenario: Scenario) -> str:
    notes = []
    done = sum(client.done is not None for client in clients)
    if done < len(clients):
        notes.append(f"{done} of {len(clients)} clients done in {scenario.limit:g} s")
    if faults := [client.fault for client in clients if client.fault]:
        notes.append(f"{len(faults)} failed, the first with {faults[0]}")
    if resumed := max(client.resumed for client in clients):
        notes.append(f"a client had to resume {resumed} times")
    return ", ".join(notes)


def _dockerd(scenario: Scenario, image: Image, place: _Place) -> Figures:
    """A daemon that has nothing yet."""
    peer, link = place.peer, place.link
    daemon = Dockerd(peer.url)
    try:
        peer.forget_peak()
        received, cpu = link.received if link else 0, peer.cpu_seconds()
        with peer.busy():
            began = time.perf_counter()
            daemon.docker("pull", "-q", f"{REPOSITORY.removeprefix('library/')}:{image.tag}")
            figures = Figures(seconds=time.perf_counter() - began)
    finally:
        daemon.stop()
    if link is not None:
        figures.upstream = (link.received - received) / image.size
    if cpu is not None:
        figures.cpu_per_gb = ((peer.cpu_seconds() or 0) - cpu) / image.size * 1e9
        figures.memory = (peer.peak_memory() or 0) / 1e6
    return figures


def _ask(scenario: Scenario, image: Image, place: _Place) -> Figures:
    """Requests per second."""
    paths = {
        Kind.BY_TAG: image.manifest(image.tag),
        Kind.BY_DIGEST: image.manifest(image.digest),
        Kind.BLOB: BLOBS + next(iter(image.layers)),
    }
    command = ["wrk", "-t1", "-c32", f"-d{scenario.seconds}s", "-H", f"Accept: {DOCKER_MANIFEST}"]
    for header in place.peer.headers.items():
        command += ["-H", ": ".join(header)]
    cpu = place.peer.cpu_nanoseconds()
    done = subprocess.run([*command, f"{place.peer.url}{paths[scenario.kind]}"], capture_output=True, text=True, check=True)
    answered = int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    figures = Figures(rate=(answered - (int(refused[1]) if refused else 0)) / scenario.seconds)
    if cpu is not None and answered:
        figures.cpu_per_request = ((place.peer.cpu_nanoseconds() or 0) - cpu) / answered / 1e3
    return figures


def _settle(touched: int) -> None:
    """The same start for everybody: a disk that has nothing left to write, and memory that has been touched.

    A virtual machine's host hands out memory a page at a time: pages that were never touched are ten times as slow to write to, the page cache's
    too, and who gets them is chance. So many bytes of it are touched, within reason.
    """
    os.sync()
    available = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")
    )
    subprocess.run([sys.executable, "-c", f"bytearray(b'x') * {min(touched, 4 * 10**9, available // 4)}"], check=True)


def _until_quiet(link: Link) -> None:
    """Waits, half a minute at most, for a second in which nothing came: some contenders go on fetching when their clients have left."""
    for _ in range(30):
        seen = link.received
        time.sleep(1)
        if link.received == seen:
            return


def _ready(cached: int) -> Figures:
    """The mirror's start, until /readyz is 200, with so many cached blobs."""
    folder = Path(tempfile.mkdtemp(prefix="mirror-bench-start-"))
    try:
        blobs = folder / "cache" / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for number in range(cached):
            data = b"%d" % number
            fd = os.open(blobs / hashlib.sha256(data).hexdigest(), os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, data)
            os.close(fd)
        with start(OWN, folder, "http://127.0.0.1:9") as peer:
            # The first start takes the files into the catalog, behind the scenes.
            deadline = time.monotonic() + 300
            while _blobs(peer) < cached and time.monotonic() < deadline:
                time.sleep(0.5)
        began = time.perf_counter()
        with start(OWN, folder, "http://127.0.0.1:9") as peer, urllib.request.urlopen(f"{peer.url}/readyz") as answer:
            assert answer.status == 200
            return Figures(seconds=time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _blobs(peer: Peer) -> float:
    with urllib.request.urlopen(f"{peer.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("mirror_cache_blobs "))
