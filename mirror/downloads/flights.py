"""The flights of this process, and their readers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mirror.cdn_loop import AskedOfPeer
from mirror.downloads.context import DownloadContext
from mirror.downloads.direct import go_on, stream
from mirror.downloads.download import Download
from mirror.downloads.flight import Flight
from mirror.downloads.parts import Part
from mirror.errors import (
    MirrorError,
    SizeDisputed,
    StorageFull,
    UpstreamBusy,
    UpstreamCut,
    UpstreamInvalid,
    UpstreamUnreachable,
)
from mirror.names import Digest, Repository
from mirror.storage.partial import Partial
from mirror.storage.slices import SliceUnreadable
from mirror.storage.store import Store

log = logging.getLogger(__name__)


class Flights:
    """At most one flight of each blob. Where registries disagree on its size, one more for each other size."""

    def __init__(self, store: Store, context_of: Callable[[Repository, Digest], DownloadContext]) -> None:
        """`context_of` is for repositories that other processes name."""
        self._store = store
        self._context_of = context_of
        self._flights: dict[tuple[Digest, int | None], Flight] = {}
        self._tasks: dict[Flight, asyncio.Task[None]] = {}
        self.begun = asyncio.Event()
        """Set whenever a flight begins."""

    def join(self, digest: Digest, context: DownloadContext, claimed: int | None = None) -> tuple[Flight, bool]:
        """Returns the flight of a blob, and True where it existed already.

        After SizeDisputed, `claimed` is the size that the registry of `context` claims: readers that got the same size share a flight. Raises AskedOfPeer if one of the fleet would
        wait for another one.
        """
        if context.for_peer and self._store.asks_peer(digest):
            raise AskedOfPeer(
                f"this mirror asks another one of the fleet for {digest} itself: do their lists (fleet.mirrors) differ?"
            )
        known = self._flights.get((digest, claimed))
        if known is not None and known.can_be_joined:
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
        """Returns the size in bytes of a blob that is being downloaded; None if the repository has not stated it and the blob is not verified."""
        flight = self._flights.get((digest, None))
        if flight is None or not flight.can_be_joined:
            return None
        supplier = flight.suppliers.get(repository)
        return flight.size if flight.verified else None if supplier is None else supplier.size

    def give_up(self, flight: Flight) -> bool:
        """Ends a flight without readers; its bytes stay in the spool for the next one. False where it has readers, or has ended."""
        if flight not in self._tasks or flight.wanted:
            return False
        self._end(flight, UpstreamUnreachable("the download was given up: nobody had asked for it"))
        return True

    def _disprove_others(self, verified: Flight) -> None:
        """Ends the flights of the same blob that have another size."""
        for flight in self.active:
            if flight.digest == verified.digest and not flight.verified and flight.size not in (None, verified.size):
                registry = flight.repository.registry
                self._end(flight, UpstreamInvalid(f"{registry} says {flight.size} bytes of a blob of {verified.size}"))

    def _end(self, flight: Flight, error: MirrorError) -> None:
        # A flight with an error is not joined any more.
        flight.error = error
        self._tasks[flight].cancel()

    async def _run(self, flight: Flight, claimed: int | None) -> None:
        try:
            await flight.run()
        finally:
            # No await comes before this: a flight whose files are closed must not be joined.
            del self._tasks[flight]
            if self._flights.get((flight.digest, claimed)) is flight:
                del self._flights[flight.digest, claimed]
        if flight.verified:
            self._disprove_others(flight)

    async def aclose(self) -> None:
        """Ends all flights. Their bytes stay in the spool for the next ones."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FlightReader:
    """A client's reader of a blob that is being downloaded.

    It changes to another flight where its own fails, or has another size, because of what a registry says that its client has not asked: whatever other
    registries do, the blob is kept when its client has got it.
    """

    def __init__(self, flights: Flights, digest: Digest, context: DownloadContext) -> None:
        """`context` is the repository that the client asked."""
        self.size: int | None = None
        """The size of the whole blob in bytes, as the client's registry claims; known, if at all, when `open` has returned."""
        self._flights = flights
        self._digest = digest
        self._context = context
        self._claimed: int | None = None
        self._entered = False
        self.flight: Flight
        self.joined: bool
        """True where the flight had been begun for others."""
        self._enter()

    def _enter(self) -> None:
        self.flight, self.joined = self._flights.join(self._digest, self._context, self._claimed)
        self._had = self.flight.progress.have
        self._supplier = self.flight.join(self._context)
        self._entered = True
        self.flight.enter()

    @property
    def gained(self) -> int:
        """The bytes that the flight has got since this reader began or joined it."""
        return max(0, self.flight.progress.have - self._had)

    @property
    def told(self) -> bool:
        """True where the client's registry itself has said that it has the blob."""
        return self._supplier.told

    @property
    def _asked_first(self) -> bool:
        """True where the flight downloads, to begin with, from the client's registry."""
        return self._supplier is self.flight.suppliers.first

    async def open(self) -> None:
        """Waits until status and size are known. Raises MirrorError; SizeDisputed where the client's registry states another size each time."""
        while True:
            try:
                self.size = await self.flight.headers(self._supplier)
                return
            except MirrorError as error:
                if not self._change_flight(error):
                    raise

    async def ended(self, seconds: float) -> bool:
        """Waits until the blob is complete; False where it is not after so many seconds. Raises MirrorError when it will not be."""
        ended = await self._flights.ended(self.flight, seconds)
        try:
            if self.flight.error is not None:
                raise self.flight.error
            if not self.flight.verified:
                self.flight.check_size(self.size)
        except MirrorError as error:
            if not self._change_flight(error):
                raise
            return False
        return ended

    def _change_flight(self, error: MirrorError) -> bool:
        """Leaves the flight for another one where `error` is another registry's fault. Returns False where it is not."""
        claimed = self._claimed
        if isinstance(error, SizeDisputed):
            if claimed is not None:
                return False
            claimed = error.size
        elif error is not self.flight.error or not self._may_succeed_elsewhere(error):
            return False
        self._leave()
        self._claimed = claimed
        self._enter()
        return True

    def _may_succeed_elsewhere(self, error: MirrorError) -> bool:
        if not self._asked_first:
            return True
        # Without readers a flight ends sooner.
        had_no_readers = error is not self._supplier.error or isinstance(error, UpstreamBusy)
        return self.joined and self.size is None and had_no_readers and not isinstance(error, StorageFull)

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        position = start
        whole = start == 0 and (stop is None or self.size is None or stop >= self.size)
        file: Partial | None = None
        while stop is None or position < stop:
            try:
                spool, end = await self.flight.readable(position, stop, self.size, whole=whole)
            except MirrorError as error:
                if file is None and self._change_flight(error):
                    continue
                if not isinstance(error, StorageFull | SizeDisputed) and (self._asked_first or not self._supplier.promised):
                    raise
                rest = self._without_disk(file, position, stop)
                break
            if file is not None and spool is not file:
                if file.have.covered_until(0) < position:
                    raise UpstreamCut("the download began anew: what was sent of it may have been wrong")
                # The file was given up, for want of room or for wrong bytes. What was sent is verified with the rest.
                rest = self._without_disk(file, position, stop)
                break
            if end <= position:
                return
            file = spool
            try:
                yield spool.slice(position, end)
            except SliceUnreadable as error:
                # Written, and not to be read: beginning in the middle it cannot be verified here, but the client verifies the whole.
                log.error("%s cannot be read from byte %d on while it is downloaded (%s)", self._digest, error.position, error)
                rest = self._without_disk(None, error.position, stop)
                break
            position = end
        else:
            return
        async with aclosing(rest) as parts:
            async for part in parts:
                yield part

    def _without_disk(self, file: Partial | None, position: int, stop: int | None) -> AsyncGenerator[Part, None]:
        digest, size = self._digest, self.size
        if file is None or file.have.covered_until(0) < position:
            hasher = digest.hasher() if position == 0 else None
            return stream(digest, Download(self._context.source, position, stop, size), stop, hasher)
        return go_on(digest, self._context.source, file, position, stop, size)

    async def aclose(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self.flight.leave()
