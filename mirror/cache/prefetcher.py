"""Prefetching: when a client asks for a layer that is missing, the other blobs of its image are fetched too.

A configuration alone starts nothing: `skopeo inspect` reads it without wanting layers. Which image a layer belongs to is known from the manifests that clients
have pulled lately, so nothing is fetched for platforms that nobody asked for. Clients come first: each blob is prefetched with one connection, within the bounds
on spare connections, and only a few at a time unless more side by side come in faster (see concurrency.py); a client that asks for one of them joins its flight.

No manifest is believed: a blob is fetched up to the size that its descriptor says, and given up where it is larger. Each registry has a budget of its own, in
blobs and in bytes, so that one that is slow, or whose manifests promise too much, takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from mirror import metrics
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
"""Blobs of one registry that are prefetched side by side: so few that most of the bounds on spare connections stay for large blobs."""
_MOST_WAITING = 256
"""Blobs of one registry that may wait to be prefetched."""
_MOST_OF_IMAGE = 1024
"""Blobs of an image that is prefetched: one request for a layer causes no more requests upstream than this."""
_BUDGET = 16 * 1024**3
"""Bytes of one registry that may be under way or wait to be prefetched."""
_TICK = 0.1
_LATELY = 300.0
"""Seconds for which a pulled manifest says that its layers will be asked for."""
_PLENTY = 2**62
"""Bytes still to come, for the measurement: nobody knows how many, but there are some."""


class _Registry:
    """What is prefetched from one registry."""

    def __init__(self) -> None:
        self.under_way: dict[Flight, int] = {}
        """With the bytes of each that have been counted."""
        self.waiting = 0
        self.promised = 0
        """Bytes under way and waiting, as the descriptors say."""
        self.room = asyncio.Event()
        self.concurrency = _concurrency(1)
        self.measuring = BackgroundTask(self._measure)

    def admits(self, descriptor: Descriptor) -> bool:
        """True where one more blob is within the budget."""
        return self.waiting < _MOST_WAITING and self.promised + descriptor.size <= _BUDGET

    async def slot(self) -> None:
        """Waits until one more may be under way."""
        self.waiting += 1
        try:
            while len(self.under_way) >= self.concurrency.target:
                self.measuring.start()
                self.room.clear()
                await self.room.wait()
        finally:
            self.waiting -= 1

    async def _measure(self) -> None:
        """Lets more of them go side by side where that pays, as long as some wait."""
        concurrency, count = self.concurrency, 0
        while self.waiting:
            await asyncio.sleep(_TICK)
            for flight, seen in self.under_way.items():
                progress = flight.progress
                self.under_way[flight] = progress.have
                # What a client waits for may come over more and more connections of its own.
                count += max(0, progress.have - seen) if not progress.readers else 0
            delivering = sum(have > 0 for have in self.under_way.values())
            concurrency.observe(asyncio.get_running_loop().time(), count, _PLENTY, delivering)
            self.room.set()
        self.concurrency = _concurrency(concurrency.learned_connections or 1)


class Prefetcher:
    """Fetches the rest of an image of which a client has asked for a layer."""

    def __init__(self, store: Store, flights: Flights, context: Callable[[Repository, Digest], DownloadContext]) -> None:
        self._store = store
        self._flights = flights
        self._context = context
        self._images: SingleFlight[None] = SingleFlight()
        self._registries: defaultdict[str, _Registry] = defaultdict(_Registry)

    def begin(self, repository: Repository, blob: Digest) -> None:
        """A client has asked for a blob that was missing: where it is a layer, the other blobs of its image are prefetched."""
        self._images.start(("blob", blob), lambda: self._find(repository, blob))

    async def aclose(self) -> None:
        """Gives up what has not begun."""
        await close_all(self._images.aclose, *(registry.measuring.aclose for registry in self._registries.values()))

    async def _find(self, repository: Repository, blob: Digest) -> None:
        for digest in await self._store.naming(blob, time.time() - _LATELY):
            manifest = await self._store.manifest(digest)
            if manifest is None:
                continue
            config, layers = blobs_of(manifest.body)
            if any(layer.digest == blob for layer in layers):
                wanted = {descriptor.digest: descriptor for descriptor in ([config] if config else []) + layers}
                del wanted[blob]
                self._images.start(("image", digest), lambda wanted=wanted: self._image(repository, wanted.values()))  # type: ignore[misc]

    async def _image(self, repository: Repository, wanted: Iterable[Descriptor]) -> None:
        # Schema 1 says no sizes: then nothing is prefetched.
        missing = [one for one in wanted if 0 < one.size <= _BUDGET and self._store.size(one.digest) is None]
        if len(missing) > _MOST_OF_IMAGE or sum(one.size for one in missing) > (await self._store.statistics()).limit:
            # What comes in would drive out what has just come in, before the client asks for it.
            log.info(
                "nothing of an image of %s is prefetched: %d blobs, or more bytes than the cache may hold",
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
        """The flight of one blob; None where it is here already, or another's flight."""
        if self._store.size(descriptor.digest) is not None:
            return None
        flight, joined = self._flights.join(descriptor.digest, self._context(repository, descriptor.digest))
        if joined:
            return None
        metrics.prefetched.labels(repository.registry).inc()
        return flight

    async def _end(self, registry: _Registry, flight: Flight, size: int) -> None:
        """Waits for the end of a flight, and gives it up where the blob is larger than its descriptor says, unless a client reads it."""
        try:
            with contextlib.suppress(MirrorError):
                # Upstream tells the size before it sends the bytes.
                await flight.headers(flight.suppliers.first)
            while True:
                progress = flight.progress
                if max(progress.have, progress.size or 0) > size and self._flights.give_up(flight):
                    log.warning(
                        "prefetching of %s ended: it is larger than the %d bytes that its manifest says", flight.digest, size
                    )
                if await self._flights.ended(flight, _TICK):
                    break
            if not flight.was_read:
                metrics.ahead_bytes.labels(flight.repository.registry, "prefetch").inc(flight.progress.have)
        finally:
            registry.promised -= size
            del registry.under_way[flight]
            registry.room.set()


def _concurrency(start: int) -> AdaptiveConcurrency:
    return AdaptiveConcurrency(_MOST, start, _LEAST)
