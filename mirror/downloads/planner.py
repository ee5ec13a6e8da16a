"""Decides which connections fetch which bytes of a blob. Does no I/O and knows no clock: its callers pass the time, in seconds, and what there is.

A download begins with one connection, in order. Others join while they raise the throughput (see concurrency.py); they take segments in the order of the bytes,
so that those nearest to the readers come first. A reader far ahead gets a connection of its own, and a connection far slower than its siblings gets a hedge:
another one that fetches the same bytes. A download that hardly moves is given up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from mirror.downloads.concurrency import AdaptiveConcurrency
from mirror.downloads.segments import Segment, Segments
from mirror.storage.extents import Extents

SEGMENT = 8 * 1024 * 1024
"""Bytes that are worth a request of their own."""
_LARGEST_SEGMENT = 64 * 1024 * 1024
_SMALLEST_DETOUR = 256 * 1024
"""Bytes that a reader's position must be ahead of a connection for a connection of its own."""
_DETOUR_AFTER = 0.5
"""Seconds that the connection would take to come to the reader's position, from which on it gets one of its own."""
_MOST_DETOURS = 4
_HEDGE_BELOW = 0.25
"""Share of its siblings' median rate below which a connection gets a hedge."""
_INTERVAL = 1.0
"""Seconds over which a connection's rate is taken."""
_HANGS_AFTER = 3.0
"""Seconds without a first byte after which a connection counts as one that brings nothing."""
_REPEATED = 0.03
"""Share of a blob that hedges may fetch twice."""
RESCUE_BELOW = 10.0
"""Seconds that a download may still take, at its rate, before another registry that has the blob is tried."""
LEAST_PROGRESS = 256 * 1024
"""Bytes that must come in each window for a download not to be given up."""
WINDOW_READ, WINDOW_UNREAD = 300.0, 60.0
"""Seconds of such a window, with readers and without. containerd's CRI gives up after 300 s without progress."""


@dataclass(frozen=True, slots=True)
class State:
    """What there is of a download. Sizes in bytes."""

    have: Extents
    size: int | None
    """None while nobody knows how long the blob is."""
    wanted: bool
    """True where somebody reads it."""
    answered: bool
    """True once upstream has answered."""
    ranges: bool
    """False where upstream does not answer ranges."""
    workers: int
    """Connections that take one segment after the other."""
    extras: int
    """Connections for one stretch: detours and hedges."""

    @property
    def divisible(self) -> bool:
        """True where more than one connection can be of use."""
        return self.answered and self.size is not None and self.size >= 2 * SEGMENT and self.ranges


@dataclass(frozen=True, slots=True)
class Fetch:
    """Start a worker with `segment`. A `spare` connection is one that the download can do without."""

    segment: Segment
    spare: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Start a worker with ``[start, end)``, the last part of what another connection was to fetch."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hedge:
    """Fetch the rest of `slow` as `segment` too, rather from another endpoint. Who is first ends the other."""

    slow: Segment
    segment: Segment


@dataclass(frozen=True, slots=True)
class Detour:
    """Fetch ``[start, end)`` out of order, for a reader."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the download: only `count` bytes came in `seconds`."""

    count: int
    seconds: float


class Window:
    """Measures progress, one stretch of time after the other."""

    def __init__(self, now: float, total: int) -> None:
        self._since, self._had = now, total

    def restart(self, now: float, total: int) -> None:
        self._since, self._had = now, total

    def gained(self, now: float, total: int, seconds: float) -> int | None:
        """Bytes that came in the `seconds` that end now, which ends the stretch; None within one."""
        if now - self._since < seconds:
            return None
        gained = total - self._had
        self.restart(now, total)
        return gained


class Planner:
    """The plan of one download. The segments in it are changed by whoever fetches them."""

    def __init__(self, most_connections: int, learned_connections: int, now: float, here: int = 0) -> None:
        """`learned_connections` is how many an earlier blob of the same registry was worth; `here` is how many bytes an earlier download has left."""
        self.segments = Segments()
        self.concurrency = AdaptiveConcurrency(most_connections, learned_connections)
        self.repeated = 0
        """Bytes that came twice."""
        self.detours = True
        """False once a detour has failed."""
        self._splits: set[int] = set()
        self._finished: deque[float] = deque(maxlen=8)
        self._looked = 0.0
        self._window = Window(now, here)
        self._window_wanted = False
        self._recent: deque[tuple[float, int]] = deque([(now, here)], maxlen=3)

    # ------------------------------------------------------------------ workers

    def target(self, state: State) -> int:
        """Workers that there should be. Those beyond the first are for readers who wait."""
        return self.concurrency.target if state.divisible and state.wanted else 1

    def start(self, state: State, now: float) -> Fetch | Split | None:
        """The next worker to start, if any."""
        if state.workers >= self.target(state):
            return None
        if (segment := self.next_segment(state, now)) is not None:
            # Nobody waits for the first bytes of what is prefetched either.
            return Fetch(segment, spare=state.workers > 0 or not state.wanted)
        if state.workers and state.divisible and not self._splits and (stretch := self._half(state, now)) is not None:
            self._splits.add(stretch[0])
            return Split(*stretch)
        return None

    def next_segment(self, state: State, now: float) -> Segment | None:
        """Claims the first stretch that no connection has; None where there is none, or a worker too many."""
        if state.workers > self.target(state):
            return None
        gap = self.segments.free(state.have, state.size)
        if gap is None:
            return None
        start, end = gap
        if end is not None and self.target(state) > 1:
            # Even pieces, as many as keep all connections busy to the end.
            pieces = (end - start) // self._segment_size()
            workers = self.target(state)
            pieces = pieces // workers * workers or pieces
            end = start + -(-(end - start) // max(pieces, 1))
        return self.segments.add(Segment(start, end, now))

    def _segment_size(self) -> int:
        """What a connection brings in a second, within bounds."""
        return int(min(max(SEGMENT, max(self._finished, default=0.0)), _LARGEST_SEGMENT))

    def _half(self, state: State, now: float) -> tuple[int, int] | None:
        """A segment of what another connection was to fetch, which goes on until a little before it."""
        assert state.size is not None
        owner = self.segments.largest(state.size)
        if owner is None or owner.hedge is not None or owner.left(state.size) < 2 * SEGMENT:
            return None
        ahead = max(SEGMENT, int(owner.rate(now) or 0))
        start, end = owner.position + ahead, owner.position + owner.left(state.size)
        return (start, min(start + self._segment_size(), end)) if end - start >= SEGMENT else None

    def separate(self, state: State, start: int, end: int, now: float) -> Segment | None:
        """Cuts ``[start, end)`` out of the segment that has it, which must not be written meanwhile; None where it can no longer be had."""
        owner = self.segments.owner(start)
        if owner is None:
            gap = self.segments.free(state.have, state.size, start)
            free = gap is not None and gap[0] == start and gap[1] is not None and end <= gap[1]
            return self.segments.add(Segment(start, end, now)) if free else None
        if owner.hedge is not None or owner.end is None or owner.end < end:
            return None
        owner.end = start
        return self.segments.add(Segment(start, end, now))

    def taken(self, start: int) -> None:
        """A split or detour from `start` on has begun, or failed."""
        self._splits.discard(start)

    # ------------------------------------------------------------------ what came of it

    def finished(self, segment: Segment, now: float) -> None:
        """A segment is complete."""
        if (rate := segment.rate(now)) is not None:
            self._finished.append(rate)

    def repeat(self, segment: Segment, count: int, size: int | None) -> None:
        """`count` bytes of a segment were here already, since its hedge was faster: enough of that ends it."""
        self.repeated += count
        if self.repeated > _REPEATED * (size or 0):
            segment.lost, segment.end = True, segment.position

    # ------------------------------------------------------------------ from time to time

    def observe(self, state: State, now: float) -> list[Hedge]:
        """Measures. Which connections need a hedge."""
        if not state.divisible or not state.wanted:
            return []
        assert state.size is not None
        here = state.have.total
        delivering = sum(segment.began is not None for segment in self.segments)
        self.concurrency.observe(now, here, state.size - here, delivering)
        return self._hedges(state.size, now) if now - self._looked >= _INTERVAL else []

    def _hedges(self, size: int, now: float) -> list[Hedge]:
        elapsed, self._looked = now - self._looked, now
        rates = {segment: segment.rate_since_last(elapsed) for segment in self.segments}
        typical = median([*self._finished, *(rate for rate in rates.values() if rate)] or [0.0])
        allowed = _REPEATED * size - self.repeated
        hedges = []
        for segment, rate in rates.items():
            hangs = segment.began is None and now - segment.made > _HANGS_AFTER
            if segment.hedge is not None or segment.end is None or not (hangs or rate is not None):
                continue
            slow = 0.0 if rate is None else rate
            left = segment.end - segment.position
            repeated = left * _HEDGE_BELOW
            if len(rates) + len(self._finished) > 2 and slow < typical * _HEDGE_BELOW and left > slow and repeated < allowed:
                allowed -= repeated
                hedges.append(self.hedge(segment, now))
        return hedges

    def hedge(self, slow: Segment, now: float) -> Hedge:
        """Pairs a segment with another of the same bytes."""
        segment = Segment(slow.position, slow.end, now, slow.lock)
        slow.hedge, segment.hedge = segment, slow
        return Hedge(slow, segment)

    def rescue(self, state: State, now: float) -> Hedge | None:
        """A hedge for the first missing bytes, from another registry, where the download is slow. For when there is such a registry."""
        total = state.have.total
        if now - self._recent[-1][0] >= _INTERVAL:
            self._recent.append((now, total))
        since, had = self._recent[0]
        if not state.wanted or now - since < _INTERVAL:
            return None
        rate = (total - had) / (now - since)
        if state.answered and state.size is not None and rate * RESCUE_BELOW >= state.size - total:
            return None
        slow = self.segments.owner(state.have.covered_until(0))
        return self.hedge(slow, now) if slow is not None and slow.hedge is None else None

    def give_up(self, state: State, now: float) -> GiveUp | None:
        """Judges the progress of all connections together, once a window."""
        if state.wanted and not self._window_wanted:
            # Whoever has come may wait for as long as the others could.
            self._window.restart(now, state.have.total)
        self._window_wanted = state.wanted
        seconds = WINDOW_READ if state.wanted else WINDOW_UNREAD
        gained = self._window.gained(now, state.have.total, seconds)
        return GiveUp(gained, seconds) if gained is not None and gained < LEAST_PROGRESS else None

    def detour(self, state: State, position: int, stop: int | None, now: float) -> Detour | None:
        """A reader waits for the bytes at `position`: a detour where no connection will come to them soon."""
        size = state.size
        if size is None or not self.detours or not state.ranges or position in self._splits or state.extras >= _MOST_DETOURS:
            return None
        if state.have.covered_until(position) > position:
            # They are here: the reader waits for the verification.
            return None
        end: int | None
        near: float
        if (owner := self.segments.owner(position)) is not None:
            before, end, near = owner.position, owner.end, SEGMENT
            rate = owner.rate(now)
            if owner.began is not None and rate is not None and now - owner.began >= _DETOUR_AFTER:
                near = min(max(_SMALLEST_DETOUR, rate * _DETOUR_AFTER), SEGMENT)
        elif (gap := self.segments.free(state.have, size, position)) is not None and (
            first := self.segments.free(state.have, size)
        ) is not None:
            before, end, near = first[0], gap[1], SEGMENT * state.workers
        else:
            return None
        if end is None or position - before < near:
            return None
        end = end if stop is None else min(stop, end)
        if position >= end:
            return None
        self._splits.add(position)
        return Detour(position, end)
