"""What is measured, as data: the scenarios, and the bars that issues set on their figures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from benchmarks.peers import DIRECT, DISTRIBUTION3, DOCKER_REGISTRY, GC, GUARDED, NGINX, OWN, SCRUB, SINGLE, TOKEN, UPKEEP
from benchmarks.shaping import CLEAN, Shape

MB = 1_000_000
CACHES = (OWN, DOCKER_REGISTRY, NGINX, DISTRIBUTION3)
EVERYBODY = (*CACHES, DIRECT)
BEST = "the best of the others"


class Kind(Enum):
    """What is done."""

    PULL = "pull"
    """By light clients (benchmarks/clients.py)."""
    DOCKERD = "dockerd"
    """``docker pull`` by a real dockerd."""
    BY_TAG = "by tag"
    """wrk asks for a manifest, as often as it can."""
    BY_DIGEST = "by digest"
    BLOB = "blob"
    """The same for a layer."""
    START = "start"
    """A start with a full cache."""
    PUSH = "push"
    """By light clients (benchmarks/pushes.py), each an image of its own."""
    TAGS = "tags"
    """Tags of a repository with many are pushed, listed and deleted, one at a time."""


ASKING = (Kind.BY_TAG, Kind.BY_DIGEST, Kind.BLOB)
"""Those whose rate is in requests."""


@dataclass(frozen=True)
class Scenario:
    """One row of figures for each contender."""

    name: str
    kind: Kind = Kind.PULL
    layers: int = 1
    size: int = 200 * MB
    """Of the whole image, in bytes."""
    clients: int = 1
    warm: bool = False
    """The image has been pulled before."""
    tls: bool = False
    """Upstream is behind TLS, without a shaped link."""
    shape: Shape = CLEAN
    """Of the link between the contender, or whoever pulls directly, and upstream."""
    contenders: tuple[str, ...] = EVERYBODY
    hashed: int = 10
    """How many of the clients hash what they get."""
    rounds: int = 1
    """Each figure is the median of so many."""
    seconds: int = 3
    """How long wrk asks."""
    limit: float = 90
    """Seconds until clients that are not done are given up."""
    together: bool = False
    """All contenders at the same time, each over a link of its own: only where links so slow that the machine idles decide."""
    cached: int = 0
    """Blobs and manifests in the cache before, or hosted tags."""

    @property
    def title(self) -> str:
        """What is done, in a line."""
        if self.kind is Kind.START:
            return f"ready with {self.cached:,} cached blobs"
        if self.kind is Kind.TAGS:
            return f"the slowest of: push a tag, list a page of tags, delete a tag; of {self.cached:,}"
        if self.kind is Kind.BLOB:
            return f"warm layer of {self.size / self.layers / 1000:g} kB"
        if self.kind in (Kind.BY_TAG, Kind.BY_DIGEST):
            return f"warm manifest {self.kind.value}"
        each = self.size / self.layers
        size = f"{each / MB:g} MB" if each >= MB / 10 else f"{each / 1000:g} kB"
        parts = ["a real dockerd"] if self.kind is Kind.DOCKERD else []
        parts.append(f"one layer of {size}" if self.layers == 1 else f"{self.layers} layers of {size}")
        parts += [f"{self.clients} clients"] if self.clients > 1 else []
        if self.kind is Kind.PUSH:
            return ", ".join(["push", *parts])
        return ", ".join([*parts, "warm" if self.warm else "over TLS" if self.tls else str(self.shape)])

    def at_most(self, scale: Scale) -> Scenario:
        """The same, smaller."""
        return replace(
            self,
            size=min(self.size, scale.size),
            layers=min(self.layers, scale.layers),
            clients=min(self.clients, scale.clients),
            rounds=min(self.rounds, scale.rounds),
            seconds=min(self.seconds, scale.seconds),
            limit=min(self.limit, scale.limit),
            cached=min(self.cached, scale.cached),
        )


@dataclass(frozen=True)
class Scale:
    """Upper bounds."""

    size: int
    layers: int
    clients: int
    rounds: int
    seconds: int
    limit: float
    cached: int


QUICK = Scale(size=20 * MB, layers=8, clients=20, rounds=1, seconds=1, limit=10, cached=1000)

CAPPED = Shape(per_connection=5e6)
LINK = Shape(whole=20e6)

SCENARIOS = (
    Scenario("start", Kind.START, contenders=(OWN,), cached=100_000),
    Scenario("tag", Kind.BY_TAG, size=MB, contenders=CACHES, rounds=3),
    Scenario("digest", Kind.BY_DIGEST, size=MB, contenders=CACHES, rounds=3),
    Scenario("warm", warm=True, contenders=CACHES, hashed=0, rounds=15),
    Scenario("warm-8", warm=True, clients=8, contenders=CACHES, hashed=0, rounds=9),
    Scenario("cold", rounds=5),
    Scenario("cold-tls", tls=True, contenders=CACHES, rounds=7),
    Scenario("segments", contenders=(OWN, SINGLE), rounds=11),
    Scenario("memory", size=1000 * MB, clients=200, contenders=(OWN,), hashed=1, limit=300),
    Scenario("capped", shape=CAPPED, together=True),
    Scenario("capped-far", shape=replace(CAPPED, rtt=0.2), together=True),
    Scenario("thin", layers=20, size=100 * MB, shape=Shape(0.05, per_connection=1e6), together=True),
    Scenario("far", layers=20, size=100 * MB, shape=Shape(0.2)),
    Scenario("alone", shape=LINK, together=True),
    Scenario("cut", shape=replace(LINK, cut=5e6), together=True, limit=45),
    Scenario("cut-far", shape=replace(LINK, rtt=0.05, cut=5e6), together=True, limit=45),
    Scenario("ten", size=50 * MB, clients=10, shape=LINK, together=True, limit=45),
    Scenario("ten-layers", layers=20, size=40 * MB, clients=10, shape=replace(LINK, rtt=0.05), together=True, limit=45),
    Scenario("crowd", clients=100, shape=LINK, contenders=(OWN, NGINX, DIRECT), hashed=1, limit=30),
    Scenario("crowd-layers", layers=20, size=100 * MB, clients=100, shape=replace(LINK, rtt=0.05), contenders=(OWN, NGINX, DIRECT), hashed=1, limit=20),
    Scenario("dockerd", Kind.DOCKERD, size=100 * MB, shape=replace(CAPPED, rtt=0.05), contenders=(OWN, DOCKER_REGISTRY, DIRECT)),
    Scenario("guarded-tag", Kind.BY_TAG, size=MB, contenders=(OWN, GUARDED), seconds=1, rounds=25),
    Scenario("guarded-digest", Kind.BY_DIGEST, size=MB, contenders=(OWN, GUARDED), seconds=1, rounds=25),
    Scenario("guarded-blob", Kind.BLOB, size=MB // 10, contenders=(OWN, GUARDED), seconds=1, rounds=25),
    Scenario("guarded-8", warm=True, clients=8, contenders=(OWN, GUARDED), hashed=0, rounds=25),
    Scenario("push", Kind.PUSH, size=1000 * MB, contenders=(OWN, DOCKER_REGISTRY), rounds=3),
    Scenario("push-100", Kind.PUSH, size=10_000, clients=100, contenders=(OWN, DOCKER_REGISTRY), rounds=5),
    Scenario("token-tag", Kind.BY_TAG, size=MB, contenders=(OWN, TOKEN), seconds=1, rounds=9),
    Scenario("tags", Kind.TAGS, contenders=(OWN,), cached=100_000, rounds=21),
    Scenario("upkeep", Kind.DOCKERD, size=600 * MB, warm=True, contenders=(OWN, *UPKEEP), cached=6000, rounds=9),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One figure."""

    scenario: str
    figure: Literal["seconds", "first_byte", "upstream", "cpu_per_gb", "cpu_per_request", "cpu_ratio", "memory", "rate"]
    contender: str = OWN


@dataclass(frozen=True)
class Bar:
    """The first figure divided by the second, or alone, is at least or at most something."""

    issue: int
    text: str
    first: Point
    second: Point | None = None
    at_least: float | None = None
    at_most: float | None = None
    by: Callable[[float, float], float] = operator.truediv


def _beside(
    scenario: str, figure: Literal["seconds", "first_byte", "cpu_per_gb", "memory", "rate"], peer: str, own: str = OWN
) -> tuple[Point, Point]:
    return Point(scenario, figure, own), Point(scenario, figure, peer)


def _faster(scenario: str, peer: str) -> tuple[Point, Point]:
    return Point(scenario, "seconds", peer), Point(scenario, "seconds")


GUARDED_HITS = {
    "tag": "a manifest by tag",
    "digest": "by digest",
    "blob": "a layer of 100 kB",
    "8": "8 clients on a layer of 200 MB",
}

BARS = (
    Bar(3, "warm manifest by tag, rate ÷ docker-registry's", *_beside("tag", "rate", DOCKER_REGISTRY), at_least=40),
    Bar(3, "warm 200 MB blob, throughput ÷ nginx's", *_beside("warm", "rate", NGINX), at_least=0.8),
    Bar(3, "cold 200 MB blob, time ÷ docker-registry's", *_beside("cold", "seconds", DOCKER_REGISTRY), at_most=1.5),
    Bar(3, "its first byte, seconds after docker-registry's", *_beside("cold", "first_byte", DOCKER_REGISTRY), at_most=0.02, by=operator.sub),
    Bar(3, "10 clients on one cold blob, upstream bytes", Point("ten", "upstream"), at_most=1.005),
    Bar(3, "200 clients on one 1 GB blob, MB resident", Point("memory", "memory"), at_most=150),
    Bar(3, "seconds until ready with 100,000 blobs", Point("start", "seconds"), at_most=1),
    Bar(4, "5 MB/s per connection, times faster than docker-registry", *_faster("capped", DOCKER_REGISTRY), at_least=6),
    Bar(4, "5 MB/s per connection, times faster than a direct pull", *_faster("capped", DIRECT), at_least=6),
    Bar(4, "5 MB/s per connection, upstream bytes", Point("capped", "upstream"), at_most=1.05),
    Bar(4, "and 200 ms, times faster than docker-registry", *_faster("capped-far", DOCKER_REGISTRY), at_least=5),
    Bar(4, "and 200 ms, times faster than a direct pull", *_faster("capped-far", DIRECT), at_least=5),
    Bar(4, "and 200 ms, upstream bytes", Point("capped-far", "upstream"), at_most=1.05),
    Bar(4, "unshaped, cold, time ÷ docker-registry's", *_beside("cold", "seconds", DOCKER_REGISTRY), at_most=1.0),
    Bar(4, "unshaped, cold, CPU ÷ docker-registry's", *_beside("cold", "cpu_per_gb", DOCKER_REGISTRY), at_most=1.0),
    Bar(10, "over TLS, cold, time ÷ distribution 3's", *_beside("cold-tls", "seconds", DISTRIBUTION3), at_most=1.0),
    Bar(4, "100 clients, the last one's time ÷ that of one alone", Point("crowd", "seconds"), Point("alone", "seconds"), at_most=1.1),
    Bar(4, "100 clients, upstream bytes", Point("crowd", "upstream"), at_most=1.05),
    Bar(4, "cut every 5 MB, upstream bytes", Point("cut", "upstream"), at_most=1.05),
    Bar(4, "cut every 5 MB, time ÷ the uncut one", Point("cut", "seconds"), Point("alone", "seconds"), at_most=1.3),
    Bar(4, "warm 200 MB blob, throughput ÷ the best other's", *_beside("warm", "rate", BEST), at_least=1.0),
    Bar(4, "the same with 8 clients", *_beside("warm-8", "rate", BEST), at_least=1.0),
    Bar(4, "warm manifest by tag, rate ÷ docker-registry's", *_beside("tag", "rate", DOCKER_REGISTRY), at_least=100),
    Bar(4, "warm manifest by tag, rate ÷ nginx's with as many workers", *_beside("tag", "rate", NGINX), at_least=0.5),
    Bar(4, "segmenting on a clean link, time ÷ the single stream's", *_beside("segments", "seconds", SINGLE), at_most=1.02),
    *(Bar(13, f"100,000 digests blocked: {what}, CPU ÷ without", Point(f"guarded-{name}", "cpu_ratio", GUARDED), at_most=1.05) for name, what in GUARDED_HITS.items()),
    Bar(13, "the same, time ÷ without", *_beside("guarded-8", "seconds", OWN, GUARDED), at_most=1.05),
    Bar(12, "push of 1 GB, time ÷ docker-registry's", *_beside("push", "seconds", DOCKER_REGISTRY), at_most=1.1),
    Bar(12, "its memory ÷ docker-registry's", *_beside("push", "memory", DOCKER_REGISTRY), at_most=1.0),
    Bar(12, "100 small pushes at once, rate ÷ docker-registry's", *_beside("push-100", "rate", DOCKER_REGISTRY), at_least=1.0),
    Bar(12, "warm manifest with a token, rate ÷ without", *_beside("token-tag", "rate", OWN, TOKEN), at_least=0.5),
    Bar(12, "100,000 hosted tags: seconds to push, list or delete one", Point("tags", "seconds"), at_most=0.05),
    *(Bar(5, f"warm pull by dockerd: {name}, time ÷ without", *_beside("upkeep", "seconds", OWN, name), at_most=1.05) for name in (GC, SCRUB)),
)  # fmt: skip
