"""How many connections one blob is worth: more are added only while that raises the throughput.

A download starts with one. While the rest would take a while, their number is doubled, and the throughput is measured once all of them deliver. A doubling that
raises it is kept, one that does not is taken back. On a clean, fast link a second connection gains nothing; on a link that limits each connection, every one does.
"""

from __future__ import annotations

import math

_WORTH = 1.0
"""Seconds that the rest of the blob must still take for another connection to be worth opening."""
_SHORTEST = 0.25
"""Seconds that the shortest measurement takes."""
_LONGEST = 1.0
"""Seconds that the longest measurement takes, or three times what the new connections took to answer: without a gain by then, the step is taken back."""
_PAYS = 0.3
"""Share of the greatest possible gain (twice the connections, twice the throughput) from which on a step is kept."""
_PATIENCE = 3.0
"""Seconds that new connections get to deliver their first bytes."""
_PAUSE = 8.0
"""Seconds until a step that was taken back is tried again."""


class AdaptiveConcurrency:
    """Adapts the number of connections to what they bring. Times are the event loop's, in seconds."""

    def __init__(self, most: int, start: int = 1, least: int = 1) -> None:
        """`start` is the number that an earlier blob of the same registry was worth; it is tried as soon as `least` connections deliver."""
        self.target = least
        """The number of connections that there should be now."""
        self.learned_connections: int | None = None
        """The greatest number that raised the throughput; None while no more than `least` were tried."""
        self._most = most
        self._next = max(2 * least, min(start, most))
        self._before = least
        self._base: float | None = None
        self._raised: float | None = None
        self._mark: tuple[float, int] | None = None
        self._answered = 0.0
        self._not_before = 0.0

    def observe(self, now: float, count: int, left: int, delivering: int) -> None:
        """Measures: `count` bytes of the blob are here, `left` are not, and `delivering` connections have brought some of theirs."""
        if self._mark is None:
            if self._raised is None:
                self._raised = now
            if delivering < min(self.target, self._most) and now - self._raised < _PATIENCE:
                return
            self._answered = now - self._raised
            self._mark = now, count
            return
        since, had = self._mark
        elapsed = now - since
        if elapsed < _SHORTEST:
            return
        rate = (count - had) / elapsed
        if self._base is None or self.target == self._before:
            if rate <= 0:
                # Nothing came: no gain can be measured against that.
                self._mark = now, count
                return
            self._consider(now, count, rate, left)
            return
        wanted = 1 + _PAYS * (self.target / self._before - 1)
        if rate >= self._base * wanted:
            self.learned_connections = self._before = self.target
            self._next = self.target * 2
            self._consider(now, count, rate, left)
        elif elapsed >= max(_LONGEST, 3 * self._answered):
            self.step_back(now, math.ceil(rate / self._base))

    def step_back(self, now: float, enough: int = 1) -> None:
        """Takes the last step back, or goes down to `enough` connections where that is more. The step is tried again after `_PAUSE`."""
        self.target = self._before = self.learned_connections = max(self._before, min(enough, self.target // 2))
        self._next = self.target * 2
        self._not_before = now + _PAUSE
        self._base, self._mark, self._raised = None, None, None

    def restart(self) -> None:
        """Forgets the current measurement. A step that was not measured to its end is taken back."""
        self.target = self._before
        self._base, self._mark, self._raised = None, None, None

    def _consider(self, now: float, count: int, rate: float, left: int) -> None:
        """Raises the number where the rest of the blob, at `rate`, takes long enough for it."""
        self._base = rate
        self._mark = now, count
        following = min(self._next, self._most)
        if following > self.target and now >= self._not_before and left > rate * _WORTH:
            self.target = following
            self._raised, self._mark = now, None
