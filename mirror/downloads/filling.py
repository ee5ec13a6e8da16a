"""Filling one spool file: which connections fetch what of a blob, until all of it is here and its digest verified.

It begins with one connection, in order. Others join while they raise the throughput (see climb.py); they take segments in the order of the bytes, so that those
nearest to the readers come first. A reader far ahead gets a connection of its own, and a connection far slower than its siblings gets a rival.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from statistics import median

from mirror.downloads.concurrency import AdaptiveConcurrency
from mirror.downloads.context import DownloadContext
from mirror.downloads.download import Download
from mirror.downloads.segments import Segment, Segments
from mirror.downloads.verifier import Verifier
from mirror.errors import MirrorError, RangeIgnored, StorageFull, UpstreamBusy
from mirror.names import Digest
from mirror.storage.store import Partial

log = logging.getLogger(__name__)

SEGMENT = 8 * 1024 * 1024
"""Bytes that are worth a request of their own."""
_LARGEST_SEGMENT = 64 * 1024 * 1024
_MOST_DETOURS = 4
_TICK = 0.05
_HEDGE_BELOW = 0.25
"""Share of its siblings' median rate below which a connection gets a rival."""
_LOOK = 1.0
"""Seconds over which a connection's rate is taken."""
_HANGS = 3.0
"""Seconds without a first byte after which a connection counts as one that brings nothing."""
_REPEATED = 0.03
"""Share of a blob that rivals may fetch twice."""


class Filling:
    """The leader's work on one spool file."""

    def __init__(
        self,
        spool: Partial,
        digest: Digest,
        context: DownloadContext,
        heard: Callable[[], None],
        progress: Callable[[], None],
        wanted: Callable[[], bool],
    ) -> None:
        """`heard` is called once upstream has answered and the size is known, `progress` with all news; `wanted` tells whether anybody reads."""
        self._spool = spool
        self._context = context
        self._source = context.source
        self._hear = heard
        self._heard = False
        self._tell = progress
        self._wanted = wanted
        self._verifier = Verifier(spool, digest)
        self._segments = Segments()
        self._workers: set[asyncio.Task[None]] = set()
        self._extras: set[asyncio.Task[None]] = set()
        self._aims: set[int] = set()
        self._detours = True
        self._concurrency = AdaptiveConcurrency(self._source.connections, context.learned_connections.get(context.origin, 1))
        self._finished: deque[float] = deque(maxlen=8)
        self._looked = 0.0
        self._repeated = 0

    async def run(self) -> bool:
        """Fetches what is missing. False when the digest of the whole is another. Raises MirrorError, OSError."""
        verifying = asyncio.create_task(self._verifier.matches())
        try:
            while not self._complete:
                self._staff()
                await self._wait()
                self._observe()
            return await verifying
        finally:
            tasks = [verifying, *self._workers, *self._extras]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._concurrency.learned_connections is not None:
                self._context.learned_connections[self._context.origin] = self._concurrency.learned_connections

    @property
    def _complete(self) -> bool:
        size = self._spool.size
        return size is not None and self._spool.have.covered_until(0) >= size

    @property
    def _divisible(self) -> bool:
        size = self._spool.size
        return self._heard and size is not None and size >= 2 * SEGMENT and self._source.ranges

    @property
    def _target(self) -> int:
        """Connections that there should be. Beyond the first they are for those who wait."""
        return self._concurrency.target if self._divisible and self._wanted() else 1

    def _progress(self) -> None:
        self._verifier.progress()
        self._tell()

    # ------------------------------------------------------------------ connections

    def _staff(self) -> None:
        while len(self._workers) < self._target:
            # Nobody waits for the first bytes of what is fetched ahead either.
            spare = bool(self._workers) or not self._wanted()
            if (segment := self._next()) is not None:
                task = asyncio.create_task(self._work(segment, spare))
            elif self._workers and self._divisible and not self._aims and (stretch := self._half()) is not None:
                self._aims.add(stretch[0])
                task = asyncio.create_task(self._join_in(*stretch))
            else:
                return
            self._workers.add(task)

    async def _wait(self) -> None:
        """Waits until a connection has ended, or it is time to look how they do. Raises what the last of them failed with."""
        running = self._workers | self._extras
        done, _ = await asyncio.wait(
            running, timeout=_TICK if self._divisible or not self._heard else None, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done & self._extras:
            self._extras.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        for task in done & self._workers:
            self._workers.discard(task)
            if task.cancelled() or (error := task.exception()) is None:
                continue
            passing = self._workers or (self._wanted() and isinstance(error, UpstreamBusy | RangeIgnored))
            if not passing or not isinstance(error, MirrorError) or isinstance(error, StorageFull):
                raise error
            # The others go on, and take over what it leaves.
            if not isinstance(error, UpstreamBusy):
                log.info("one of %d connections failed: %s", len(self._workers) + 1, error)
            self._concurrency.step_back(asyncio.get_running_loop().time(), len(self._workers))

    def _next(self) -> Segment | None:
        """Claims the first stretch that nobody has in hand."""
        gap = self._segments.free(self._spool.have, self._spool.size)
        if gap is None:
            return None
        start, end = gap
        if end is not None and self._target > 1:
            # Even pieces, as many as keep all connections busy to the end.
            pieces = (end - start) // self._segment()
            workers = max(self._target, 1)
            pieces = pieces // workers * workers or pieces
            end = start + -(-(end - start) // max(pieces, 1))
        return self._segments.add(Segment(start, end))

    def _segment(self) -> int:
        """Bytes a segment: what a connection brings in a second, within bounds."""
        return int(min(max(SEGMENT, max(self._finished, default=0.0)), _LARGEST_SEGMENT))

    def _half(self) -> tuple[int, int] | None:
        """A segment of what another connection was to fetch: it leads the way, and so goes on until a little before."""
        assert self._spool.size is not None
        owner = self._segments.largest(self._spool.size)
        if owner is None or owner.hedge is not None or owner.left(self._spool.size) < 2 * SEGMENT:
            return None
        ahead = max(SEGMENT, int(owner.rate(asyncio.get_running_loop().time()) or 0))
        start, end = owner.position + ahead, owner.position + owner.left(self._spool.size)
        return (start, min(start + self._segment(), end)) if end - start >= SEGMENT else None

    async def _work(self, segment: Segment | None, spare: bool) -> None:
        """Fetches one stretch after the other."""
        while segment is not None:
            await self._fetch(segment, spare)
            segment = self._next() if len(self._workers) <= self._target else None

    async def _join_in(self, start: int, end: int) -> None:
        if not await self._take_over(start, end):
            self._concurrency.step_back(asyncio.get_running_loop().time())
            return
        await self._work(self._next() if len(self._workers) <= self._target else None, True)

    async def _fetch(self, segment: Segment, spare: bool) -> None:
        spool = self._spool
        whole = segment.start == 0 and (segment.end is None or segment.end == spool.size)
        download = Download(self._source, segment.start, None if whole else segment.end, spool.size, spare=spare)
        try:
            if not self._heard:
                # The first answer: its failure is the client's to hear at once, with a status.
                await download.open()
                await self._set_size(segment, download.size)
                self._heard = True
                self._hear()
            await self._transfer(download, segment)
            if spool.size is None:
                await self._set_size(segment, download.size)
        finally:
            self._segments.drop(segment)
            await download.aclose()

    async def _take_over(self, start: int, end: int) -> bool:
        """Fetches ``[start, end)``, which is another connection's as yet, and aimed at. False when upstream could not, or it was too late."""
        download = Download(self._source, start, end, self._spool.size, spare=True)
        try:
            await download.open()
            segment = await self._separate(start, end)
            if segment is None:
                return False
            self._aims.discard(start)
            try:
                await self._transfer(download, segment)
            finally:
                self._segments.drop(segment)
        except UpstreamBusy:
            return False
        finally:
            self._aims.discard(start)
            await download.aclose()
        return True

    async def _separate(self, start: int, end: int) -> Segment | None:
        """Cuts ``[start, end)`` out of another claim; None where it can no longer be had."""
        owner = self._segments.owner(start)
        if owner is None:
            gap = self._segments.free(self._spool.have, self._spool.size, start)
            free = gap is not None and gap[0] == start and gap[1] is not None and end <= gap[1]
            return self._segments.add(Segment(start, end)) if free else None
        async with owner.lock:
            # Not while it writes: what it is writing is not to be written twice.
            if self._segments.owner(start) is not owner or owner.hedge is not None or owner.end is None or owner.end < end:
                return None
            owner.end = start
            return self._segments.add(Segment(start, end))

    # ------------------------------------------------------------------ bytes

    async def _transfer(self, download: Download, segment: Segment) -> None:
        loop = asyncio.get_running_loop()
        segment.task = asyncio.current_task()
        while segment.end is None or segment.position < segment.end:
            data = await download.read()
            if not data:
                return
            if segment.began is None:
                segment.began = loop.time()
            segment.endpoint = download.endpoint
            async with segment.lock:
                await self._keep(segment, data)
            self._progress()
        if (rate := segment.rate(loop.time())) is not None:
            self._finished.append(rate)
        if segment.hedge is not None and segment.hedge.task is not None:
            segment.hedge.task.cancel()

    async def _keep(self, segment: Segment, data: bytes | memoryview) -> None:
        there = self._spool.have.covered_until(segment.position) - segment.position
        if there > 0:
            # A rival was faster.
            self._repeated += min(there, len(data))
            if self._repeated > _REPEATED * (self._spool.size or 0):
                segment.end = segment.position
        if segment.end is not None:
            data = data[: max(segment.end - segment.position, 0)]
        if there < len(data):
            start = segment.position + max(there, 0)
            await self._verifier.write(start, data[max(there, 0) :])
        segment.position += len(data)

    async def _set_size(self, segment: Segment, size: int | None) -> None:
        if size is None:
            return
        if self._spool.size is None:
            await self._spool.set_size(size)
        if segment.end is None:
            segment.end = size
        self._progress()

    # ------------------------------------------------------------------ looking after them

    def _observe(self) -> None:
        if not self._divisible or not self._wanted():
            return
        now = asyncio.get_running_loop().time()
        here = self._spool.have.total
        delivering = sum(segment.began is not None for segment in self._segments)
        assert self._spool.size is not None
        self._concurrency.observe(now, here, self._spool.size - here, delivering)
        if now - self._looked >= _LOOK:
            self._hedge_slow_segments(now)

    def _hedge_slow_segments(self, now: float) -> None:
        elapsed, self._looked = now - self._looked, now
        rates = {segment: segment.look(elapsed) for segment in self._segments}
        typical = median([*self._finished, *(rate for rate in rates.values() if rate)] or [0.0])
        assert self._spool.size is not None
        allowed = _REPEATED * self._spool.size - self._repeated
        for segment, rate in rates.items():
            hangs = segment.began is None and now - segment.made > _HANGS
            if segment.hedge is not None or segment.end is None or not (hangs or rate is not None):
                continue
            slow = 0.0 if rate is None else rate
            left = segment.end - segment.position
            repeated = left * _HEDGE_BELOW
            if len(rates) + len(self._finished) > 2 and slow < typical * _HEDGE_BELOW and left > slow and repeated < allowed:
                allowed -= repeated
                hedge = Segment(segment.position, segment.end, segment.lock)
                segment.hedge, hedge.hedge = hedge, segment
                self._extras.add(asyncio.create_task(self._hedge(hedge, segment.endpoint)))

    async def _hedge(self, segment: Segment, avoid: str | None) -> None:
        """Fetches the same as a straggler; who is first ends the other."""
        self._segments.add(segment)
        download = Download(self._source, segment.start, segment.end, self._spool.size, spare=True, avoid=avoid)
        try:
            await download.open()
            await self._transfer(download, segment)
        except MirrorError as error:
            log.info("a rival for a slow connection failed: %s", error)
        finally:
            self._segments.drop(segment)
            await download.aclose()

    # ------------------------------------------------------------------ ranges far ahead

    def want(self, position: int, stop: int | None) -> None:
        """A reader waits for the bytes at `position`: they are fetched out of order where the download is not soon to come by."""
        have, size = self._spool.have, self._spool.size
        if (
            size is None
            or not self._detours
            or not self._source.ranges
            or position in self._aims
            or len(self._extras) >= _MOST_DETOURS
        ):
            return
        end: int | None
        if (owner := self._segments.owner(position)) is not None:
            before, end, near = owner.position, owner.end, SEGMENT
        elif (gap := self._segments.free(have, size, position)) is not None and (
            first := self._segments.free(have, size)
        ) is not None:
            before, end, near = first[0], gap[1], SEGMENT * len(self._workers)
        else:
            return
        if end is None or position - before < near:
            return
        end = end if stop is None else min(stop, end)
        if position < end:
            self._aims.add(position)
            self._extras.add(asyncio.create_task(self._detour(position, end)))

    async def _detour(self, start: int, end: int) -> None:
        try:
            await self._take_over(start, end)
        except (MirrorError, OSError) as error:
            # What it leaves undone is a gap like any other.
            log.info("out-of-order fetch at %d: %s", start, error)
            self._detours = False
