"""The flights of this process, and their readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mirror.downloads.context import DownloadContext
from mirror.downloads.direct import go_on, stream
from mirror.downloads.download import Download
from mirror.downloads.flight import Flight
from mirror.downloads.parts import Part
from mirror.errors import MirrorError, SizeDisputed, StorageFull, UpstreamCut, UpstreamInvalid, UpstreamUnreachable
from mirror.names import Digest, Repository
from mirror.storage.store import Partial, Store


class Flights:
    """At most one flight a digest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flights: dict[Digest, tuple[Flight, asyncio.Task[None]]] = {}
        self.begun = asyncio.Event()
        """Set whenever one begins, for who wants to watch."""

    def join(self, digest: Digest, context: DownloadContext) -> tuple[Flight, bool]:
        """The flight of a blob, begun where there is none. True with one that was there already."""
        if (known := self._flights.get(digest)) is not None and known[0].error is None:
            return known[0], True
        flight = Flight(digest, self._store, context)
        task = asyncio.create_task(self._fly(flight), name=f"flight {digest}")
        self._flights[digest] = flight, task
        self.begun.set()
        return flight, False

    @property
    def active(self) -> list[Flight]:
        """Those that have not ended."""
        return [flight for flight, _ in self._flights.values()]

    async def ended(self, digest: Digest, seconds: float | None = None) -> bool:
        """Waits until there is no flight of a blob any more, however it ended. False where there still is one after so many seconds."""
        if (known := self._flights.get(digest)) is not None:
            await asyncio.wait([known[1]], timeout=seconds)
            return known[1].done()
        return True

    def size(self, digest: Digest, repository: Repository) -> int | None:
        """The size in bytes of a blob that is on its way, where that repository has told it already, or it is verified."""
        known = self._flights.get(digest)
        if known is None or known[0].error is not None:
            return None
        supplier = known[0].suppliers.get(repository)
        return known[0].size if known[0].verified else None if supplier is None else supplier.size

    def give_up(self, flight: Flight) -> bool:
        """Ends a flight that nobody reads; what it has stays in the spool, to be gone on with. False where somebody does, or it has ended."""
        known = self._flights.get(flight.digest)
        if known is None or known[0] is not flight or flight.wanted:
            return False
        # Nobody joins it any more.
        flight.error = UpstreamUnreachable("the download was given up: nobody had asked for it")
        known[1].cancel()
        return True

    def disprove(self, digest: Digest, size: int) -> None:
        """The blob is known to be of `size` bytes: ends a flight that goes by a registry which says another size."""
        known = self._flights.get(digest)
        if known is not None and not known[0].verified and known[0].size not in (None, size):
            known[0].error = UpstreamInvalid(f"{known[0].repository.registry} says {known[0].size} bytes of a blob of {size}")
            known[1].cancel()

    async def _fly(self, flight: Flight) -> None:
        try:
            await flight.run()
        finally:
            # Without a pause after its end: it must not be joined once its files are closed.
            if (known := self._flights.get(flight.digest)) is not None and known[0] is flight:
                del self._flights[flight.digest]

    async def aclose(self) -> None:
        """Ends all flights; what they have stays in the spool, to be gone on with."""
        tasks = [task for _, task in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FlightReader:
    """One client's place in a flight."""

    def __init__(self, flight: Flight, context: DownloadContext) -> None:
        """`context` is this client's own way upstream: for when the disk fills up, and for whose word it goes by."""
        self.size: int | None = None
        """Bytes of the whole blob, as the client's own registry says; known, if at all, once `open` has returned."""
        self._flight = flight
        self._supplier = flight.join(context)
        self._source = context.source
        self._entered = True
        flight.enter()

    @property
    def refusal(self) -> MirrorError | None:
        """What the client's own registry answered instead of the blob."""
        return self._supplier.error

    @property
    def _independent(self) -> bool:
        """True where the client's own registry has the blob, and another's failure may have ended the download."""
        return self._supplier.promised and self._supplier is not self._flight.suppliers.first

    async def open(self) -> None:
        """Waits until status and length are known. Raises MirrorError; SizeDisputed where the download is of another size."""
        self.size = await self._flight.headers(self._supplier)

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        position = start
        whole = start == 0 and (stop is None or self.size is None or stop >= self.size)
        file: Partial | None = None
        while stop is None or position < stop:
            try:
                spool, end = await self._flight.readable(position, stop, self.size, whole=whole)
            except MirrorError as error:
                if not isinstance(error, StorageFull | SizeDisputed) and not self._independent:
                    raise
                async with aclosing(self._without_disk(file, position, stop)) as rest:
                    async for part in rest:
                        yield part
                return
            if file is not None and spool is not file:
                if file.have.covered_until(0) < position:
                    raise UpstreamCut("the download began anew: what was sent of it may have been wrong")
                # Given up by its leader, for want of room or for wrong bytes: what was sent is verified with the rest.
                async with aclosing(self._without_disk(file, position, stop)) as rest:
                    async for part in rest:
                        yield part
                return
            if end <= position:
                return
            file = spool
            yield spool.slice(position, end)
            position = end

    def _without_disk(self, file: Partial | None, position: int, stop: int | None) -> AsyncGenerator[Part, None]:
        digest, size = self._flight.digest, self.size
        if file is None or file.have.covered_until(0) < position:
            hasher = digest.hasher() if position == 0 else None
            return stream(digest, Download(self._source, position, stop, size), stop, hasher)
        return go_on(digest, self._source, file, position, stop, size)

    async def aclose(self) -> None:
        if self._entered:
            self._entered = False
            self._flight.leave()
