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
from mirror.cache.content import Content
from mirror.cache.flights.climb import Climb
from mirror.cache.flights.flight import Flight
from mirror.cache.flights.flights import Flights
from mirror.cache.flights.ground import Ground
from mirror.manifests import children_of
from mirror.names import Digest, Repository
from mirror.tasks import Chore, Once

_LEAST, _MOST = 4, 12
"""Blobs that are fetched ahead side by side: so many that most of the bounds on spare connections stay for large blobs."""
_TICK = 0.1
_LATELY = 300.0
"""Seconds for which a pulled manifest says that its layers will be asked for."""
_PLENTY = 2**62
"""Bytes that wait for their turn: nobody knows how many, but there are some."""


class Ahead:
    """What is fetched before it is asked for."""

    def __init__(self, content: Content, flights: Flights, ground: Callable[[Repository, Digest], Ground]) -> None:
        self._content = content
        self._flights = flights
        self._ground = ground
        self._images: Once[None] = Once()
        self._under_way: dict[Flight, int] = {}
        """With how much of each has been seen, in bytes."""
        self._waiting = 0
        self._room = asyncio.Event()
        self._climb = _climb(1)
        self._chore = Chore(self._measure)

    def begin(self, repository: Repository, blob: Digest) -> None:
        """A client has asked for a blob that was missing: the others of its image are fetched behind its back."""
        self._images.start(("blob", blob), lambda: self._find(repository, blob))

    async def aclose(self) -> None:
        """Gives up what has not begun."""
        await self._images.aclose()
        await self._chore.aclose()

    async def _find(self, repository: Repository, blob: Digest) -> None:
        for manifest in await self._content.naming(blob, time.time() - _LATELY):
            self._images.start(("image", manifest), lambda manifest=manifest: self._image(repository, manifest))  # type: ignore[misc]

    async def _image(self, repository: Repository, digest: Digest) -> None:
        manifest = await self._content.manifest(digest)
        if manifest is None:
            return
        async with asyncio.TaskGroup() as group:
            for blob in dict.fromkeys(children_of(manifest.body)[1]):
                await self._turn()
                if self._content.store.size(blob) is not None:
                    continue
                flight, joined = self._flights.join(blob, self._ground(repository, blob))
                if not joined:
                    metrics.fetched_ahead.labels(repository.registry).inc()
                    self._under_way[flight] = 0
                    group.create_task(self._end(flight))

    async def _end(self, flight: Flight) -> None:
        try:
            await self._flights.ended(flight.digest)
        finally:
            del self._under_way[flight]
            self._room.set()

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            while len(self._under_way) >= self._climb.target:
                self._chore.start()
                self._room.clear()
                await self._room.wait()
        finally:
            self._waiting -= 1

    async def _measure(self) -> None:
        """Lets more of them go side by side where that pays, as long as some wait."""
        climb, count = self._climb, 0
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
        self._climb = _climb(climb.paid or 1)


def _climb(start: int) -> Climb:
    return Climb(_MOST, start, _LEAST)
