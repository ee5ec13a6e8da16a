"""Segments: which connection fetches which bytes of a blob, and which bytes are free."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from mirror.storage.extents import Extents


class Segment:
    """The bytes that one connection fetches. `end` moves down when another connection takes over the rest."""

    __slots__ = ("_seen", "began", "end", "endpoint", "hedge", "lock", "lost", "made", "position", "start", "task")

    def __init__(self, start: int, end: int | None, made: float, lock: asyncio.Lock | None = None) -> None:
        self.start = start
        self.position = start
        """Offset of the next byte."""
        self.end = end
        """None until the size of the blob is known."""
        self.made = made
        self.began: float | None = None
        """The time of the first bytes, in seconds of the event loop."""
        self.endpoint: str | None = None
        """The endpoint that sends it."""
        self.task: asyncio.Task[None] | None = None
        """The task that fetches it."""
        self.hedge: Segment | None = None
        """Another segment with the same bytes, since one of the two is slow."""
        self.lost = False
        """True once its hedge was faster."""
        self.lock = asyncio.Lock() if lock is None else lock
        """Held while bytes are written. A segment shares it with its hedge, so that neither writes what the other has written."""

        self._seen: int | None = None

    def left(self, size: int) -> int:
        """Returns the bytes still to come of a blob of `size` bytes."""
        return (size if self.end is None else self.end) - self.position

    def rate(self, now: float) -> float | None:
        """Returns the bytes per second so far; None before the first bytes."""
        if self.began is None or now <= self.began:
            return None
        return (self.position - self.start) / (now - self.began)

    def rate_since_last(self, seconds: float) -> float | None:
        """Returns the bytes per second since the last call, `seconds` ago; None at the first call."""
        seen, self._seen = self._seen, self.position
        return None if seen is None else (self.position - seen) / seconds


class Segments:
    """All segments of one blob. Two overlap only where one is the hedge of the other."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []

    def add(self, segment: Segment) -> Segment:
        self._segments.append(segment)
        return segment

    def drop(self, segment: Segment) -> None:
        """Removes a segment. Bytes that it has not fetched are free again."""
        self._segments.remove(segment)
        if segment.hedge is not None:
            segment.hedge.hedge = None

    def owner(self, position: int) -> Segment | None:
        """Returns the segment that will reach `position` first: of a segment and its hedge, the one that is further."""
        coming = (s for s in self._segments if s.position <= position and (s.end is None or position < s.end))
        return max(coming, key=lambda segment: segment.position, default=None)

    def largest(self, size: int) -> Segment | None:
        """Returns the segment with the most bytes to come."""
        return max(self._segments, key=lambda segment: segment.left(size), default=None)

    def free(self, have: Extents, size: int | None, position: int = 0) -> tuple[int, int | None] | None:
        """Returns the first stretch from `position` on that is neither here nor in a segment; None where there is none."""
        while (gap := have.next_gap(position, size)) is not None:
            start, end = gap
            inside = [s for s in self._segments if (end is None or s.position < end) and (s.end is None or s.end > start)]
            if not inside:
                return start, end
            first = min(inside, key=lambda segment: segment.position)
            if first.position > start:
                return start, first.position
            if first.end is None:
                return None
            position = first.end
        return None

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)
