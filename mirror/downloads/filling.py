"""Downloads a blob into a spool file: opens the connections that planner.py asks for, and writes and verifies what they bring."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any, Protocol

from mirror.downloads.context import DownloadContext
from mirror.downloads.download import Download, Source
from mirror.downloads.planner import Detour, Fetch, Hedge, Planner, divisible
from mirror.downloads.segments import Segment
from mirror.downloads.suppliers import Supplier, Suppliers
from mirror.downloads.verifier import Verifier
from mirror.errors import MirrorError, RangeIgnored, StorageFull, UpstreamBusy, UpstreamInvalid, UpstreamStalled
from mirror.names import Digest
from mirror.storage.extents import Extents
from mirror.storage.partial import Partial

log = logging.getLogger(__name__)

_TICK = 0.05
"""Seconds between observations of a download that several connections can share."""
_UNANSWERED_TICK = 0.2
"""The same until upstream has answered, when there is nothing to observe but what other processes say; the answer itself ends the wait."""
_SLOW_TICK = 0.5
RESCUE_AGAIN = 30.0
"""Seconds after which a slow download is tried at the same other registry again."""


class Watcher(Protocol):
    """The flight that a spool file belongs to."""

    @property
    def wanted(self) -> bool:
        """True where a client reads."""
        ...

    def answered(self, spool: Partial) -> None:
        """Called when upstream has answered. The size is in the spool file, if it is known."""
        ...

    def progressed(self) -> None:
        """Called when there are new bytes."""
        ...

    def exchange(self, spool: Partial) -> None:
        """Called every half second, or more often: exchanges sources and readers with the processes that follow."""
        ...


class Filling:
    """One download into a spool file that this process leads. Implements `planner.State`: what the planner does not ask for is not computed."""

    def __init__(self, spool: Partial, digest: Digest, context: DownloadContext, suppliers: Suppliers, watcher: Watcher) -> None:
        self._spool = spool
        self._context = context
        self._suppliers = suppliers
        if spool.size is not None:
            suppliers.size = spool.size
        self._watcher = watcher
        self._verifier = Verifier(spool, digest)
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when upstream has answered."""
        self._workers: set[asyncio.Task[None]] = set()
        self._extras: set[asyncio.Task[None]] = set()
        self._time = asyncio.get_running_loop().time
        self._exchanged = self._time()
        learned = context.learned_connections.get(context.repository.registry, 1)
        self._planner = Planner(suppliers.connections, learned, self._time(), spool.have.total)

    async def run(self) -> bool:
        """Downloads what is missing. Returns False where the blob has another digest. Raises MirrorError, OSError."""
        verifying = asyncio.create_task(self._verifier.matches())
        try:
            while not self._complete:
                self._start_workers()
                await self._wait()
                self._observe()
            return await verifying
        finally:
            tasks = [verifying, *self._workers, *self._extras]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if (learned := self._planner.concurrency.learned_connections) is not None:
                self._context.learned_connections[self._context.repository.registry] = learned

    def want(self, position: int, stop: int | None) -> None:
        """Fetches the bytes at `position`, for which a reader waits, out of order where they would not come soon."""
        if (detour := self._planner.detour(self, position, stop, self._time())) is not None:
            self._extra(self._detour(detour))

    @property
    def _complete(self) -> bool:
        size = self._spool.size
        return size is not None and self._spool.have.covered_until(0) >= size

    # ------------------------------------------------------------------ as the planner's State

    @property
    def have(self) -> Extents:
        return self._spool.have

    @property
    def size(self) -> int | None:
        return self._spool.size

    @property
    def wanted(self) -> bool:
        return self._watcher.wanted

    @property
    def answered(self) -> bool:
        return self._answer.done()

    @property
    def ranges(self) -> bool:
        return self._suppliers.ranges

    @property
    def single(self) -> bool:
        return self._suppliers.single

    @property
    def least(self) -> int:
        return self._suppliers.least

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def extras(self) -> int:
        return len(self._extras)

    @property
    def throttled(self) -> bool:
        return self._suppliers.throttled

    # ------------------------------------------------------------------ connections

    def _start_workers(self) -> None:
        while (action := self._planner.start(self, self._time())) is not None:
            if isinstance(action, Fetch):
                task = asyncio.create_task(self._work(action.segment, action.spare))
            else:
                task = asyncio.create_task(self._work_on_split(action.start, action.end))
            self._workers.add(task)

    def _extra(self, work: Coroutine[Any, Any, None]) -> None:
        self._extras.add(asyncio.create_task(work))

    async def _wait(self) -> None:
        """Waits until upstream has answered, a connection has ended, or it is time to observe. Raises the error of the last connection."""
        waiting: set[asyncio.Future[None]] = {*self._workers, *self._extras}
        if self.answered:
            tick = _TICK if divisible(self) else _SLOW_TICK
        else:
            tick = _UNANSWERED_TICK
            waiting.add(self._answer)
        done, _ = await asyncio.wait(waiting, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
        for task in done & self._extras:
            self._extras.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        for task in done & self._workers:
            self._workers.discard(task)
            if task.cancelled() or (error := task.exception()) is None:
                continue
            passing = self._workers or self._extras or (self._watcher.wanted and isinstance(error, UpstreamBusy | RangeIgnored))
            if not passing or not isinstance(error, MirrorError) or isinstance(error, StorageFull):
                raise error
            # The other connections take over what it has not fetched.
            if not isinstance(error, UpstreamBusy):
                log.info("one of %d connections failed: %s", len(self._workers) + 1, error, extra={"cause": str(error)})
            self._planner.concurrency.step_back(self._time(), len(self._workers))

    def _observe(self) -> None:
        now = self._time()
        if now >= self._exchanged + _TICK:
            self._exchanged = now
            self._watcher.exchange(self._spool)
        self._suppliers.attend(self._watcher.wanted)
        if (gives_up := self._planner.give_up(self, now)) is not None:
            raise UpstreamStalled(f"only {gives_up.count} bytes came in {gives_up.seconds:g} s")
        for hedge in self._planner.observe(self, now):
            self._extra(self._hedge(hedge, self._suppliers))
        supplier = self._suppliers.idle(now, RESCUE_AGAIN)
        if supplier is not None and (rescue := self._planner.rescue(self, now)) is not None:
            supplier.tried = now
            self._extra(self._rescue(rescue, supplier))

    async def _work(self, segment: Segment | None, spare: bool) -> None:
        """Fetches segments until none is left."""
        while segment is not None:
            await self._fetch(segment, spare)
            segment = self._planner.next_segment(self, self._time())

    async def _work_on_split(self, start: int, end: int) -> None:
        if not await self._take_over(start, end):
            self._planner.concurrency.step_back(self._time())
            return
        await self._work(self._planner.next_segment(self, self._time()), True)

    async def _fetch(self, segment: Segment, spare: bool) -> None:
        spool = self._spool
        whole = segment.start == 0 and (segment.end is None or segment.end == spool.size)

        def superseded() -> bool:
            # When this connection fails, its hedge is fetching the same bytes already.
            return segment.hedge is not None

        source = self._suppliers.unless(superseded)
        download = Download(source, segment.start, None if whole else segment.end, spool.size, spare=spare, superseded=superseded)
        segment.task = asyncio.current_task()
        try:
            if not self.answered:
                # If the first request fails, the client gets a status of failure at once.
                await download.open()
                await self._begin(segment, download.size)
            await self._transfer(download, segment)
            if spool.size is None:
                await self._set_size(segment, download.size)
        finally:
            self._planner.segments.drop(segment)
            await download.aclose()

    async def _begin(self, segment: Segment, size: int | None) -> None:
        await self._set_size(segment, size)
        if not self.answered:
            self._answer.set_result(None)
            self._watcher.answered(self._spool)

    async def _take_over(self, start: int, end: int) -> bool:
        """Takes ``[start, end)`` over from another connection as soon as upstream has answered. False where upstream is busy, or the bytes have come meanwhile."""
        download = Download(self._suppliers, start, end, self._spool.size, spare=True)
        try:
            await download.open()
            segment = await self._separate(start, end)
            if segment is None:
                return False
            self._planner.taken(start)
            try:
                await self._transfer(download, segment)
            finally:
                self._planner.segments.drop(segment)
        except UpstreamBusy:
            return False
        finally:
            self._planner.taken(start)
            await download.aclose()
        return True

    async def _separate(self, start: int, end: int) -> Segment | None:
        owner = self._planner.segments.owner(start)
        if owner is None:
            return self._planner.separate(self, start, end, self._time())
        async with owner.lock:
            # Not while the owner writes: its bytes must not be written twice.
            if self._planner.segments.owner(start) is not owner:
                return None
            return self._planner.separate(self, start, end, self._time())

    async def _detour(self, detour: Detour) -> None:
        try:
            await self._take_over(detour.start, detour.end)
        except (MirrorError, OSError) as error:
            # The workers fetch what it has not.
            log.info("out-of-order fetch at %d: %s", detour.start, error)
            self._planner.detours = False

    async def _hedge(self, hedge: Hedge, source: Source, *, spare: bool = True) -> None:
        """Fetches the same bytes as a slow connection. The first to finish ends the other."""
        segment = self._planner.segments.add(hedge.segment)
        start = segment.start
        segment.task = asyncio.current_task()
        stop = None if start == 0 and segment.end in (None, self._spool.size) else segment.end
        download = Download(source, start, stop, self._spool.size, spare=spare, avoid=hedge.slow.endpoint)
        try:
            await download.open()
            await self._begin(segment, download.size)
            await self._transfer(download, segment)
            if self._spool.size is None:
                await self._set_size(segment, download.size)
        except StorageFull:
            raise
        except MirrorError as error:
            log.info("a hedge for a slow connection failed: %s", error)
        finally:
            self._planner.segments.drop(segment)
            await download.aclose()

    async def _rescue(self, hedge: Hedge, supplier: Supplier) -> None:
        """Hedges at another registry, which is preferred from then on where it was faster."""
        await self._hedge(hedge, self._suppliers.only(supplier), spare=False)
        if hedge.segment.began is not None and not hedge.segment.lost:
            self._suppliers.preferred = supplier

    # ------------------------------------------------------------------ bytes

    async def _transfer(self, download: Download, segment: Segment) -> None:
        segment.task = asyncio.current_task()
        while segment.end is None or segment.position < segment.end:
            # Where another connection has taken over the rest, its bytes are not received twice.
            data = await download.read(sys.maxsize if segment.end is None else segment.end - segment.position)
            if not data:
                break
            if segment.began is None:
                segment.began = self._time()
            segment.endpoint = download.endpoint
            async with segment.lock:
                await self._keep(segment, data)
            self._progressed()
        self._planner.finished(segment, self._time())
        if segment.hedge is not None and segment.hedge.task is not None and not segment.lost:
            segment.hedge.task.cancel()

    async def _keep(self, segment: Segment, data: bytes | memoryview) -> None:
        there = self._spool.have.covered_until(segment.position) - segment.position
        if there > 0:
            # The hedge has brought them already.
            self._planner.repeat(segment, min(there, len(data)), self._spool.size)
        if segment.end is not None:
            data = data[: max(segment.end - segment.position, 0)]
        if there < len(data):
            start = segment.position + max(there, 0)
            await self._verifier.write(start, data[max(there, 0) :])
        segment.position += len(data)

    async def _set_size(self, segment: Segment, size: int | None) -> None:
        if size is None:
            return
        if self._suppliers.size not in (None, size):
            raise UpstreamInvalid(f"upstream says {size} bytes of a blob of {self._suppliers.size}")
        if self._spool.size is None:
            # Set before the await, so that no other connection sets another size meanwhile.
            self._suppliers.size = size
            await self._spool.set_size(size)
        if segment.end is None:
            segment.end = size
        self._progressed()

    def _progressed(self) -> None:
        self._verifier.progress()
        self._watcher.progressed()
