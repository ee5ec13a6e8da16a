"""How many connections one blob is worth: more are added only while that raises the throughput.

It starts with one. When the rest would take a while, their number is doubled, and what that brought is measured once all of them deliver: kept when it paid,
taken back when it did not. On a clean fast link a second connection gains nothing, and one capped or lossy for each connection gains by every one.
"""

from __future__ import annotations

import math

_WORTH = 1.0
"""Seconds that the rest must still take for another connection to be worth opening."""
_SHORTEST = 0.25
"""Seconds of measuring that tell anything."""
_DOUBT = 1.0
"""Seconds of measuring, or three times what the new connections took to answer, before a gain that does not show is given up."""
_PAYS = 0.3
"""Share of the gain that as many more connections could bring at best, from which on they are kept."""
_PATIENCE = 3.0
"""Seconds that new connections get to deliver their first bytes."""
_PAUSE = 8.0
"""Seconds until a step that did not pay is tried again."""


class AdaptiveConcurrency:
    """Measures, climbs, steps back. Times are the event loop's, in seconds."""

    def __init__(self, most: int, start: int = 1, least: int = 1) -> None:
        """`start` is how many paid for an earlier blob of the same registry: to be begun with as soon as the first bytes of `least` are here."""
        self.target = least
        """Connections that there should be now."""
        self.learned_connections: int | None = None
        """How many proved worth it; None as long as no more than `least` were tried."""
        self._most = most
        self._next = max(2 * least, min(start, most))
        self._before = least
        self._base: float | None = None
        self._raised: float | None = None
        self._mark: tuple[float, int] | None = None
        self._answered = 0.0
        self._not_before = 0.0

    def observe(self, now: float, count: int, left: int, delivering: int) -> None:
        """Takes note that of the blob `count` bytes are here, `left` are not, and `delivering` connections have brought some of theirs."""
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
                # Nothing came: that is no base to measure a gain by.
                self._mark = now, count
                return
            self._consider(now, count, rate, left)
            return
        wanted = 1 + _PAYS * (self.target / self._before - 1)
        if rate >= self._base * wanted:
            self.learned_connections = self._before = self.target
            self._next = self.target * 2
            self._consider(now, count, rate, left)
        elif elapsed >= max(_DOUBT, 3 * self._answered):
            self.step_back(now, math.ceil(rate / self._base))

    def step_back(self, now: float, enough: int = 1) -> None:
        """Takes the last step back, or down to `enough` where that is more; it is tried again only after a while."""
        self.target = self._before = self.learned_connections = max(self._before, min(enough, self.target // 2))
        self._next = self.target * 2
        self._not_before = now + _PAUSE
        self._base, self._mark, self._raised = None, None, None

    def _consider(self, now: float, count: int, rate: float, left: int) -> None:
        """The present number is known to bring `rate`: is it worth more?"""
        self._base = rate
        self._mark = now, count
        following = min(self._next, self._most)
        if following > self.target and now >= self._not_before and left > rate * _WORTH:
            self.target = following
            self._raised, self._mark = now, None
