"""Counts how the cache is used, pulls by name and traffic by registry and day, and writes the counts into the catalog every five seconds."""

from __future__ import annotations

import asyncio
import math
import time

from mirror import metrics
from mirror.names import Reference, Repository
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.history import SAMPLE_INTERVAL
from mirror.tasks import BackgroundTask

_INTERVAL = 5.0
_COUNTERS = (metrics.requests, metrics.hits, metrics.pulled_bytes, metrics.pushed_bytes)
"""In the order of the table's columns. The metrics count for one process; the catalog sums over all processes and restarts."""


class Usage:
    """Counts in memory and writes to the catalog."""

    def __init__(self, catalog: CatalogExecutor) -> None:
        self._catalog = catalog
        self._pulls: dict[tuple[Repository, Reference], tuple[int, float]] = {}
        self._rulings: dict[tuple[str, str, Repository, Reference], tuple[int, float, str]] = {}
        self._written = _traffic()
        self._sampled = -math.inf
        self._background_task = BackgroundTask(self._write)

    def start(self) -> None:
        """Starts writing in the background."""
        self._background_task.start()

    def pulled(self, repository: Repository, reference: Reference) -> None:
        """Counts a client's request for a manifest."""
        count, _ = self._pulls.get((repository, reference), (0, 0.0))
        self._pulls[repository, reference] = count + 1, time.time()

    def ruled(self, rule: str, verdict: str, repository: Repository, reference: Reference, reason: str) -> None:
        """Counts what a guard's rule has done."""
        key = rule, verdict, repository, reference
        count, _, _ = self._rulings.get(key, (0, 0.0, ""))
        self._rulings[key] = count + 1, time.time(), reason

    async def flush(self) -> None:
        """Writes what has been counted since the last time."""
        if self._pulls:
            pulls, self._pulls = self._pulls, {}
            await self._catalog.write(lambda catalog: catalog.counts.add_pulls(pulls))
        if self._rulings:
            rulings, self._rulings = self._rulings, {}
            await self._catalog.write(lambda catalog: catalog.sightings.count_rulings(rulings))
        counted, before = _traffic(), self._written
        self._written = counted
        new = {
            key: [count - old for count, old in zip(counts, before.get(key, [0] * 4), strict=True)]
            for key, counts in counted.items()
        }
        if any(any(counts) for counts in new.values()):
            await self._catalog.write(lambda catalog: catalog.counts.add_traffic(new))
        if (now := time.monotonic()) >= self._sampled + SAMPLE_INTERVAL:
            self._sampled = now
            await self._catalog.write(lambda catalog: catalog.counts.sample())

    async def aclose(self) -> None:
        """Stops, after writing what is left."""
        await self._background_task.aclose()

    async def _write(self) -> None:
        try:
            while True:
                await asyncio.sleep(_INTERVAL)
                await self.flush()
        finally:
            await self.flush()


def _traffic() -> dict[tuple[str, str], list[int]]:
    """Returns the requests, hits, bytes fetched and bytes sent of this process, by registry and type.

    The types are ``blob`` and ``manifest``; ``prefetch`` and ``pull`` say how many of the bytes fetched were fetched before a client asked for them.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for place, counter in enumerate(_COUNTERS):
        for sample in next(iter(counter.collect())).samples:
            if sample.name.endswith("_total"):
                key = sample.labels["upstream_host"], sample.labels["type"]
                found.setdefault(key, [0] * len(_COUNTERS))[place] = int(sample.value)
    for sample in next(iter(metrics.prefetched_bytes.collect())).samples:
        if sample.name.endswith("_total"):
            # A row of its own, so that a sum over blobs and manifests leaves it out.
            key = sample.labels["upstream_host"], sample.labels["by"]
            found[key] = [0, 0, int(sample.value), 0]
    return found
