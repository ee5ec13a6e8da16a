"""Ahead of the client: when the first blob of an image is asked for and missing, the others start coming in.

Of what image it is, the manifests tell that clients have pulled lately: so never for platforms that nobody asked for. Clients come first: blobs are fetched ahead
with one connection each, only within the bounds on spare connections, and only a few at a time unless more side by side come in faster (see flights/climb.py); a
client that asks for one of them joins its flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mirror import metrics
from mirror.downloads.concurrency import AdaptiveConcurrency
from mirror.downloads.context import DownloadContext
from mirror.downloads.flight import Flight
from mirror.downloads.flights import Flights
from mirror.manifests import children_of
from mirror.names import Digest, Repository
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask, SingleFlight

_LEAST, _MOST = 4, 12
"""Blobs that are fetched ahead side by side: so many that most of the bounds on spare connections stay for large blobs."""
_TICK = 0.1
_LATELY = 300.0
"""Seconds for which a pulled manifest says that its layers will be asked for."""
_PLENTY = 2**62
"""Bytes that wait for their turn: nobody knows how many, but there are some."""


class Prefetcher:
    """What is fetched before it is asked for."""

    def __init__(self, store: Store, flights: Flights, context: Callable[[Repository, Digest], DownloadContext]) -> None:
        self._store = store
        self._flights = flights
        self._context = context
        self._images: SingleFlight[None] = SingleFlight()
        self._under_way: dict[Flight, int] = {}
        """With how much of each has been seen, in bytes."""
        self._waiting = 0
        self._room = asyncio.Event()
        self._concurrency = _concurrency(1)
        self._background_task = BackgroundTask(self._measure)

    def begin(self, repository: Repository, blob: Digest) -> None:
        """A client has asked for a blob that was missing: the others of its image are fetched behind its back."""
        self._images.start(("blob", blob), lambda: self._find(repository, blob))

    async def aclose(self) -> None:
        """Gives up what has not begun."""
        await self._images.aclose()
        await self._background_task.aclose()

    async def _find(self, repository: Repository, blob: Digest) -> None:
        for manifest in await self._store.naming(blob, time.time() - _LATELY):
            self._images.start(("image", manifest), lambda manifest=manifest: self._image(repository, manifest))  # type: ignore[misc]

    async def _image(self, repository: Repository, digest: Digest) -> None:
        manifest = await self._store.manifest(digest)
        if manifest is None:
            return
        async with asyncio.TaskGroup() as group:
            for blob in dict.fromkeys(children_of(manifest.body)[1]):
                await self._turn()
                if self._store.size(blob) is not None:
                    continue
                flight, joined = self._flights.join(blob, self._context(repository, blob))
                if not joined:
                    metrics.prefetched.labels(repository.registry).inc()
                    self._under_way[flight] = 0
                    group.create_task(self._end(flight))

    async def _end(self, flight: Flight) -> None:
        try:
            await self._flights.ended(flight.digest)
            if not flight.was_read:
                metrics.ahead_bytes.labels(flight.repository.registry, "prefetch").inc(flight.progress.have)
        finally:
            del self._under_way[flight]
            self._room.set()

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            while len(self._under_way) >= self._concurrency.target:
                self._background_task.start()
                self._room.clear()
                await self._room.wait()
        finally:
            self._waiting -= 1

    async def _measure(self) -> None:
        """Lets more of them go side by side where that pays, as long as some wait."""
        climb, count = self._concurrency, 0
        while self._waiting:
            await asyncio.sleep(_TICK)
            for flight, seen in self._under_way.items():
                progress = flight.progress
                self._under_way[flight] = progress.have
                # What a client waits for may come over more and more connections of its own.
                count += max(0, progress.have - seen) if not progress.readers else 0
            delivering = sum(have > 0 for have in self._under_way.values())
            climb.observe(asyncio.get_running_loop().time(), count, _PLENTY, delivering)
            self._room.set()
        self._concurrency = _concurrency(climb.learned_connections or 1)


def _concurrency(start: int) -> AdaptiveConcurrency:
    return AdaptiveConcurrency(_MOST, start, _LEAST)
