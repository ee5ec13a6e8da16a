"""Decides which connections fetch which bytes of a blob. Does no I/O and reads no clock: callers pass the time, in seconds, and the state of the download.

A download begins with one connection, in order. More are added while that raises the throughput (see concurrency.py). They take segments in the order of the
bytes, so that those that readers need next come first. A reader far ahead gets a connection of its own. A connection far slower than the others gets a hedge:
another connection that fetches the same bytes. A download that makes too little progress is given up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from mirror.downloads.concurrency import AdaptiveConcurrency
from mirror.downloads.segments import Segment, Segments
from mirror.storage.extents import Extents

SEGMENT = 8 * 1024 * 1024
"""Bytes of a segment, at least: enough for a request of its own."""
_LARGEST_SEGMENT = 64 * 1024 * 1024
_SMALLEST_DETOUR = 256 * 1024
"""Bytes that a reader must be ahead of a connection to get one of its own."""
_DETOUR_AFTER = 0.5
"""Seconds that a connection would take to reach the reader's position, above which the reader gets one of its own."""
_MOST_DETOURS = 4
_HEDGE_BELOW = 0.25
"""Share of the connections' median rate below which a connection gets a hedge."""
_INTERVAL = 1.0
"""Seconds over which a connection's rate is measured."""
_HANGS_AFTER = 3.0
"""Seconds without a first byte after which the rate of a connection counts as 0."""
_REPEATED = 0.03
"""Share of a blob that hedges may fetch a second time."""
RESCUE_BELOW = 10.0
"""Seconds that the rest of a download may take at its rate. Where it takes longer, another registry that has the blob is tried."""
LEAST_PROGRESS = 256 * 1024
"""Bytes that must come in each window. A download with fewer is given up."""
WINDOW_READ, WINDOW_UNREAD = 300.0, 60.0
"""Seconds of a window, with readers and without. containerd's CRI plugin gives up after 300 s without progress."""


class State(Protocol):
    """The state of a download. Sizes in bytes."""

    @property
    def have(self) -> Extents: ...

    @property
    def size(self) -> int | None:
        """None until it is known."""
        ...

    @property
    def wanted(self) -> bool:
        """True where a client reads it."""
        ...

    @property
    def answered(self) -> bool:
        """True once upstream has answered."""
        ...

    @property
    def ranges(self) -> bool:
        """False where upstream does not answer ranges."""
        ...

    @property
    def single(self) -> bool:
        """True where a second connection brings nothing sooner, unless it is for bytes out of order."""
        ...

    @property
    def least(self) -> int:
        """Connections that there are at least where a client waits."""
        ...

    @property
    def workers(self) -> int:
        """Connections that take one segment after the other."""
        ...

    @property
    def extras(self) -> int:
        """Connections that fetch one stretch: detours and hedges."""
        ...

    @property
    def throttled(self) -> bool:
        """True where the mirror's own cap on the rate makes it slow: upstream is not judged by it, and more connections would gain nothing."""
        ...


def divisible(state: State) -> bool:
    """Returns whether more than one connection can be used."""
    return state.answered and state.size is not None and state.size >= 2 * SEGMENT and state.ranges


@dataclass(frozen=True, slots=True)
class Fetch:
    """Start a worker with `segment`. A `spare` connection is one that the download can do without."""

    segment: Segment
    spare: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Start a worker with ``[start, end)``, the last part of another connection's segment."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hedge:
    """Fetch the rest of `slow` a second time, as `segment`, from another endpoint if possible. The first to finish ends the other."""

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
    """Measures progress over consecutive periods."""

    def __init__(self, now: float, total: int) -> None:
        self._since, self._had = now, total

    def restart(self, now: float, total: int) -> None:
        self._since, self._had = now, total

    def gained(self, now: float, total: int, seconds: float) -> int | None:
        """Ends a period of `seconds`: returns the bytes that came in it. None where it is not over."""
        if now - self._since < seconds:
            return None
        gained = total - self._had
        self.restart(now, total)
        return gained


class Planner:
    """The plan of one download. The connections move the positions of its segments."""

    def __init__(self, most_connections: int, learned_connections: int, now: float, here: int = 0) -> None:
        """`learned_connections` is the number that was best for an earlier blob of the same registry; `here` is the number of bytes left by an earlier download."""
        self.segments = Segments()
        self.concurrency = AdaptiveConcurrency(most_connections, learned_connections)
        self.repeated = 0
        """Bytes that were fetched twice."""
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
        """Returns the number of workers that there should be: more than one only for readers."""
        if not divisible(state) or not state.wanted or state.single:
            return 1
        return max(self.concurrency.target, state.least)

    def start(self, state: State, now: float) -> Fetch | Split | None:
        """Returns the next worker to start; None where there are enough."""
        if state.workers >= self.target(state) or (state.throttled and state.workers):
            return None
        if (segment := self.next_segment(state, now)) is not None:
            # Without readers even the first connection can wait.
            return Fetch(segment, spare=state.workers > 0 or not state.wanted)
        if state.workers and divisible(state) and not self._splits and (stretch := self._half(state, now)) is not None:
            self._splits.add(stretch[0])
            return Split(*stretch)
        return None

    def next_segment(self, state: State, now: float) -> Segment | None:
        """Assigns the first stretch that no connection has. None where there is none, or there are too many workers."""
        if state.workers > self.target(state):
            return None
        gap = self.segments.free(state.have, state.size)
        if gap is None:
            return None
        start, end = gap
        if end is not None and self.target(state) > 1:
            # Pieces of equal size, so many that all connections are busy to the end.
            pieces = (end - start) // self._segment_size()
            workers = self.target(state)
            pieces = pieces // workers * workers or pieces
            end = start + -(-(end - start) // max(pieces, 1))
        return self.segments.add(Segment(start, end, now))

    def _segment_size(self) -> int:
        """The bytes that a connection brings in a second, within bounds."""
        return int(min(max(SEGMENT, max(self._finished, default=0.0)), _LARGEST_SEGMENT))

    def _half(self, state: State, now: float) -> tuple[int, int] | None:
        """Returns the last part of the largest segment: its connection keeps what it fetches in the next second."""
        assert state.size is not None
        owner = self.segments.largest(state.size)
        if owner is None or owner.hedge is not None or owner.left(state.size) < 2 * SEGMENT:
            return None
        ahead = max(SEGMENT, int(owner.rate(now) or 0))
        start, end = owner.position + ahead, owner.position + owner.left(state.size)
        return (start, min(start + self._segment_size(), end)) if end - start >= SEGMENT else None

    def separate(self, state: State, start: int, end: int, now: float) -> Segment | None:
        """Cuts ``[start, end)`` out of its segment, which must not be written meanwhile. None where that is no longer possible."""
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
        """Call this when a split or detour at `start` has begun or failed."""
        self._splits.discard(start)

    # ------------------------------------------------------------------ results

    def finished(self, segment: Segment, now: float) -> None:
        """Call this when a segment is complete."""
        if (rate := segment.rate(now)) is not None:
            self._finished.append(rate)

    def repeat(self, segment: Segment, count: int, size: int | None) -> None:
        """Call this when `count` bytes of a segment were here already, brought by its hedge. Ends the segment when too many bytes have come twice."""
        self.repeated += count
        if self.repeated > _REPEATED * (size or 0):
            segment.lost, segment.end = True, segment.position

    # ------------------------------------------------------------------ measuring

    def observe(self, state: State, now: float) -> list[Hedge]:
        """Measures the throughput. Returns the hedges to start."""
        if state.throttled:
            self.concurrency.restart()
        if not divisible(state) or not state.wanted or state.throttled or state.single:
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
        """Makes a hedge of a segment."""
        segment = Segment(slow.position, slow.end, now, slow.lock)
        slow.hedge, segment.hedge = segment, slow
        return Hedge(slow, segment)

    def rescue(self, state: State, now: float) -> Hedge | None:
        """Returns a hedge of the first missing bytes where the download is slow. Call this where another registry has the blob."""
        total = state.have.total
        if now - self._recent[-1][0] >= _INTERVAL:
            self._recent.append((now, total))
        since, had = self._recent[0]
        if not state.wanted or state.throttled or now - since < _INTERVAL:
            return None
        rate = (total - had) / (now - since)
        if state.answered and state.size is not None and rate * RESCUE_BELOW >= state.size - total:
            return None
        slow = self.segments.owner(state.have.covered_until(0))
        return self.hedge(slow, now) if slow is not None and slow.hedge is None else None

    def give_up(self, state: State, now: float) -> GiveUp | None:
        """Returns GiveUp where all connections together have brought too little in a window."""
        if state.throttled or (state.wanted and not self._window_wanted):
            # The first reader may wait for a whole window.
            self._window.restart(now, state.have.total)
        self._window_wanted = state.wanted
        seconds = WINDOW_READ if state.wanted else WINDOW_UNREAD
        gained = self._window.gained(now, state.have.total, seconds)
        return GiveUp(gained, seconds) if gained is not None and gained < LEAST_PROGRESS else None

    def detour(self, state: State, position: int, stop: int | None, now: float) -> Detour | None:
        """Returns a detour for a reader that waits for the bytes at `position`. None where a connection comes to them soon."""
        size = state.size
        if size is None or not self.detours or not state.ranges or position in self._splits or state.extras >= _MOST_DETOURS:
            return None
        if state.have.covered_until(position) > position:
            # They are here; the reader waits for the verification.
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
