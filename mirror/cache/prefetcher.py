"""Prefetching: when a client requests a layer that is not cached, the other blobs of its image are fetched too.

A request for a configuration starts nothing: `skopeo inspect` reads it without pulling layers. The image of a layer is found among the manifests that clients
pulled recently, so only platforms that clients use are fetched. Clients come first: each blob is prefetched over one connection, within the limits on spare
connections, and only a few at a time unless more in parallel raise the throughput (see concurrency.py); a client that requests one of them joins its flight.

Manifests are not trusted: a blob is given up if it is larger than its descriptor says. Each registry has its own budget of blobs and bytes, so that a slow one, or
one whose manifests list too much, does not delay the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection

from mirror import metrics
from mirror.cache.guarding import Guard
from mirror.downloads.concurrency import AdaptiveConcurrency
from mirror.downloads.context import DownloadContext
from mirror.downloads.flight import Flight
from mirror.downloads.flights import Flights
from mirror.errors import MirrorError
from mirror.manifests import Descriptor, blobs_of
from mirror.names import Digest, Repository
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask, SingleFlight, close_all

log = logging.getLogger(__name__)

_LEAST, _MOST = 4, 12
"""Blobs of one registry that are prefetched in parallel: so few that most spare connections stay available for large blobs."""
_MOST_WAITING = 256
"""Blobs of one registry that may wait to be prefetched."""
_MOST_OF_IMAGE = 1024
"""Blobs of an image; a larger one is not prefetched. This bounds the upstream requests that one request for a layer causes."""
_BUDGET = 16 * 1024**3
"""Bytes of one registry that may be under way or wait to be prefetched."""
_TICK = 0.1
"""Seconds between measurements of the throughput."""
_LATELY = 300.0
"""Seconds after a manifest was pulled in which its layers are expected to be requested."""
_PLENTY = 2**62
"""Bytes left to download, for AdaptiveConcurrency: the number is not known, but large."""


class _Registry:
    """The blobs that are prefetched from one registry, and those that wait."""

    def __init__(self) -> None:
        self.under_way: dict[Flight, int] = {}
        """The bytes of each flight that the last measurement saw."""
        self.waiting = 0
        self.promised = 0
        """Bytes under way and waiting, as the descriptors say."""
        self.room = asyncio.Event()
        self.concurrency = _concurrency(1)
        self.measuring = BackgroundTask(self._measure)

    def admits(self, descriptor: Descriptor) -> bool:
        """Returns whether one more blob is within the budget."""
        return self.waiting < _MOST_WAITING and self.promised + descriptor.size <= _BUDGET

    async def slot(self) -> None:
        """Waits until one more flight may begin."""
        self.waiting += 1
        try:
            while len(self.under_way) >= self.concurrency.target:
                self.measuring.start()
                self.room.clear()
                await self.room.wait()
        finally:
            self.waiting -= 1

    async def _measure(self) -> None:
        """Adapts the number of parallel flights to the measured throughput, as long as some blobs wait."""
        concurrency, count = self.concurrency, 0
        while self.waiting:
            await asyncio.sleep(_TICK)
            for flight, seen in self.under_way.items():
                progress = flight.progress
                self.under_way[flight] = progress.have
                # A flight that a client reads may add connections of its own.
                count += max(0, progress.have - seen) if not progress.readers else 0
            delivering = sum(have > 0 for have in self.under_way.values())
            concurrency.observe(asyncio.get_running_loop().time(), count, _PLENTY, delivering)
            self.room.set()
        self.concurrency = _concurrency(concurrency.learned_connections or 1)


class Prefetcher:
    """Fetches the other blobs of an image when a client requests a layer."""

    def __init__(self, store: Store, flights: Flights, context: Callable[[Repository, Digest], DownloadContext]) -> None:
        self.guard: Guard | None = None
        self._store = store
        self._flights = flights
        self._context = context
        self._images: SingleFlight[None] = SingleFlight()
        self._registries: defaultdict[str, _Registry] = defaultdict(_Registry)
        self._expected: Counter[Digest] = Counter()
        """The blobs of images that are prefetched now."""

    def begin(self, repository: Repository, blob: Digest) -> None:
        """Call this when a client requests a blob that is not cached. If it is a layer, the other blobs of its image are prefetched."""
        if blob in self._expected:
            return
        self._images.start(("blob", blob), lambda: self._find(repository, blob))

    async def aclose(self) -> None:
        """Gives up blobs whose flight has not begun."""
        await close_all(self._images.aclose, *(registry.measuring.aclose for registry in self._registries.values()))

    async def _find(self, repository: Repository, blob: Digest) -> None:
        for digest in await self._store.naming(blob, time.time() - _LATELY):
            # Every layer's request leads here: while an image is prefetched, its manifest is not parsed again.
            if ("image", digest) in self._images or (manifest := await self._store.manifest(digest)) is None:
                continue
            if self.guard is not None and (await self.guard.rule_digest(repository, digest, manifest)).error is not None:
                # It was read to decide on it, and no client gets it.
                continue
            config, layers = blobs_of(manifest.body)
            if any(layer.digest == blob for layer in layers):
                wanted = {descriptor.digest: descriptor for descriptor in ([config] if config else []) + layers}
                del wanted[blob]
                self._images.start(("image", digest), lambda wanted=wanted: self._image(repository, blob, wanted.values()))  # type: ignore[misc]

    async def _image(self, repository: Repository, asked_for: Digest, wanted: Collection[Descriptor]) -> None:
        digests = [asked_for, *(one.digest for one in wanted)]
        self._expected.update(digests)
        try:
            await self._fetch(repository, wanted)
        finally:
            self._expected.subtract(digests)
            self._expected = +self._expected

    async def _fetch(self, repository: Repository, wanted: Collection[Descriptor]) -> None:
        # Schema 1 has no sizes, so nothing of it is prefetched.
        missing = [one for one in wanted if 0 < one.size <= _BUDGET and self._store.size(one.digest) is None]
        if len(missing) > _MOST_OF_IMAGE or sum(one.size for one in missing) > (await self._store.statistics()).limit:
            # Prefetched blobs would evict each other before the client requests them.
            log.info(
                "an image of %s is not prefetched: it lacks %d blobs, which are too many or larger than the cache",
                repository,
                len(missing),
            )
            return
        registry = self._registries[repository.registry]
        async with asyncio.TaskGroup() as group:
            for descriptor in missing:
                if not registry.admits(descriptor):
                    continue
                registry.promised += descriptor.size
                try:
                    await registry.slot()
                    flight = self._begin(repository, descriptor)
                except BaseException:
                    registry.promised -= descriptor.size
                    raise
                if flight is None:
                    registry.promised -= descriptor.size
                    continue
                registry.under_way[flight] = 0
                group.create_task(self._end(registry, flight, descriptor.size))

    def _begin(self, repository: Repository, descriptor: Descriptor) -> Flight | None:
        """Starts the flight of a blob. Returns None if it is cached, already being downloaded, or blocked."""
        if self._store.size(descriptor.digest) is not None:
            return None
        if self.guard is not None and self.guard.blocks(repository, descriptor.digest) is not None:
            return None
        flight, joined = self._flights.join(descriptor.digest, self._context(repository, descriptor.digest))
        if joined:
            return None
        metrics.prefetched.labels(repository.registry).inc()
        return flight

    async def _end(self, registry: _Registry, flight: Flight, size: int) -> None:
        """Waits for the end of a flight. Gives it up if the blob is larger than its descriptor says, unless a client reads it."""
        try:
            with contextlib.suppress(MirrorError):
                # The size of the blob is known once upstream's headers are here.
                await flight.headers(flight.suppliers.first)
            while True:
                progress = flight.progress
                if max(progress.have, progress.size or 0) > size and self._flights.give_up(flight):
                    log.warning(
                        "gave up prefetching %s: it is larger than the %d bytes that its manifest says", flight.digest, size
                    )
                if await self._flights.ended(flight, _TICK):
                    break
            if not flight.was_read:
                metrics.prefetched_bytes.labels(flight.repository.registry, "prefetch").inc(flight.progress.have)
        finally:
            registry.promised -= size
            del registry.under_way[flight]
            registry.room.set()


def _concurrency(start: int) -> AdaptiveConcurrency:
    return AdaptiveConcurrency(_MOST, start, _LEAST)
