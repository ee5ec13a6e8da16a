"""The flights of this process, and their readers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mirror.downloads.context import DownloadContext
from mirror.downloads.direct import go_on, stream
from mirror.downloads.download import Download
from mirror.downloads.flight import Flight
from mirror.downloads.parts import Part
from mirror.errors import MirrorError, SizeDisputed, StorageFull, UpstreamCut, UpstreamInvalid, UpstreamUnreachable
from mirror.names import Digest, Repository
from mirror.storage.partial import Partial
from mirror.storage.slices import SliceUnreadable
from mirror.storage.store import Store

log = logging.getLogger(__name__)


class Flights:
    """At most one flight of each blob; where registries disagree on its size, at most one more for each size."""

    def __init__(self, store: Store, context_of: Callable[[Repository, Digest], DownloadContext]) -> None:
        """`context_of` is for the repositories that other processes name."""
        self._store = store
        self._context_of = context_of
        self._flights: dict[tuple[Digest, int | None], Flight] = {}
        self._tasks: dict[Flight, asyncio.Task[None]] = {}
        self.begun = asyncio.Event()
        """Set whenever a flight begins."""

    def join(self, digest: Digest, context: DownloadContext, claimed: int | None = None) -> tuple[Flight, bool]:
        """The flight of a blob, begun where there is none. True with one that was there already.

        `claimed` is the size that the registry of `context` says, after SizeDisputed: all who were told that size share one flight.
        """
        known = self._flights.get((digest, claimed))
        if known is not None and known.error is None:
            return known, True
        flight = Flight(digest, self._store, context, self._context_of, claimed)
        self._flights[digest, claimed] = flight
        self._tasks[flight] = asyncio.create_task(self._run(flight, claimed), name=f"flight {digest}")
        self.begun.set()
        return flight, False

    @property
    def active(self) -> list[Flight]:
        """The flights that have not ended."""
        return list(self._tasks)

    async def ended(self, flight: Flight, seconds: float | None = None) -> bool:
        """Waits until a flight has ended, successfully or not. False where it has not after so many seconds."""
        if (task := self._tasks.get(flight)) is not None:
            await asyncio.wait([task], timeout=seconds)
            return task.done()
        return True

    def size(self, digest: Digest, repository: Repository) -> int | None:
        """The size in bytes of a blob that is being downloaded, where that repository has told it already, or it is verified."""
        flight = self._flights.get((digest, None))
        if flight is None or flight.error is not None:
            return None
        supplier = flight.suppliers.get(repository)
        return flight.size if flight.verified else None if supplier is None else supplier.size

    def give_up(self, flight: Flight) -> bool:
        """Ends a flight that nobody reads; what it has stays in the spool, to be gone on with. False where somebody does, or it has ended."""
        if flight not in self._tasks or flight.wanted:
            return False
        self._end(flight, UpstreamUnreachable("the download was given up: nobody had asked for it"))
        return True

    def _disprove_others(self, verified: Flight) -> None:
        """Ends the flights of the same blob that go by another size."""
        for flight in self.active:
            if flight.digest == verified.digest and not flight.verified and flight.size not in (None, verified.size):
                registry = flight.repository.registry
                self._end(flight, UpstreamInvalid(f"{registry} says {flight.size} bytes of a blob of {verified.size}"))

    def _end(self, flight: Flight, error: MirrorError) -> None:
        # With an error, nobody joins it any more.
        flight.error = error
        self._tasks[flight].cancel()

    async def _run(self, flight: Flight, claimed: int | None) -> None:
        try:
            await flight.run()
        finally:
            # Without a pause after its end: it must not be joined once its files are closed.
            del self._tasks[flight]
            if self._flights.get((flight.digest, claimed)) is flight:
                del self._flights[flight.digest, claimed]
        if flight.verified:
            self._disprove_others(flight)

    async def aclose(self) -> None:
        """Ends all flights; what they have stays in the spool, to be gone on with."""
        tasks = list(self._tasks.values())
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
            try:
                yield spool.slice(position, end)
            except SliceUnreadable as error:
                # Written, and not to be read: beginning in the middle it cannot be verified here, but the client verifies the whole.
                log.error(
                    "%s cannot be read from byte %d on while it is downloaded (%s)", self._flight.digest, error.position, error
                )
                async with aclosing(self._without_disk(None, error.position, stop)) as rest:
                    async for part in rest:
                        yield part
                return
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
