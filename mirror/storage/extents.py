"""Which bytes of a blob are here: half-open intervals, kept sorted, disjoint and merged."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Extents:
    """A set of byte offsets, as intervals ``[start, end)``.

    A download has a handful of them (one per connection or resumed piece), so lists beat trees.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Adds ``[start, end)``, merging it with what it touches."""
        if start >= end:
            return
        # Those from `low` up to `high` touch or overlap the new one.
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def covered_until(self, position: int) -> int:
        """Returns the end of the interval that holds `position`; `position` itself if none does."""
        index = bisect_right(self._starts, position) - 1
        if index >= 0 and self._ends[index] > position:
            return self._ends[index]
        return position

    def next_gap(self, position: int, end: int | None) -> tuple[int, int | None] | None:
        """The first stretch from `position` on, and before `end`, that is not here; None when all is.

        An `end` of None means that the length is unknown: then so may be the gap's.
        """
        start = self.covered_until(position)
        if end is not None and start >= end:
            return None
        index = bisect_right(self._starts, start)
        if index < len(self._starts) and (end is None or self._starts[index] < end):
            return start, self._starts[index]
        return start, end

    @property
    def total(self) -> int:
        """Bytes that are here."""
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)
