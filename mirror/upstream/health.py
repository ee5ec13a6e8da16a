"""Whether an endpoint is worth asking: a circuit breaker each, and what it has delivered lately."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_FAILURES = 3
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


_WEIGHT = 0.3
"""Of the newest observation in the mean."""
_LATELY = 300.0
"""Seconds for which a judgement holds; then the endpoint gets another chance."""
_JUDGED_FROM = 1024 * 1024
"""Bytes from which on a body tells something of the throughput."""
_TYPICAL = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """For /readyz. `state` is ``ok``, ``failing`` (but still asked), ``open`` (left alone for a while) or ``wrong`` (asked for blobs last, because it lied).

    `latency` is the time until a blob's response headers, in seconds; `throughput` that of one connection, in bytes per second.
    """

    url: str
    state: str
    last_error: str | None
    latency: float | None
    throughput: float | None


class Breaker:
    """Opens after three failures in a row; then one request at a time is let through, after pauses of 1 s, doubling to 60 s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_again = 0.0
        self.last_error: str | None = None

    @property
    def state(self) -> str:
        return "ok" if not self._failures else "failing" if self._failures < _FAILURES else "open"

    def allows(self) -> bool:
        """True when the endpoint may be asked now. Through an open breaker, this lets one request pass and closes the door behind it."""
        if self._failures < _FAILURES:
            return True
        now = self._clock()
        if now < self._closed_again:
            return False
        self._closed_again = now + self._pause()
        return True

    def succeeded(self) -> None:
        self._failures, self.last_error = 0, None

    def failed(self, error: str) -> None:
        self._failures += 1
        self.last_error = error
        self._closed_again = self._clock() + self._pause()

    def _pause(self) -> float:
        return float(min(_FIRST_PAUSE * 2 ** min(max(self._failures - _FAILURES, 0), 10), _LONGEST_PAUSE))


class Delivery:
    """What an endpoint's blobs came at: how soon, how fast, and whether rightly. All of it is forgotten after a while, so that everybody gets another chance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.active = 0
        """Connections that are fetching blobs from it now."""
        self.latency: float | None = None
        self.throughput: float | None = None
        self._clock = clock
        self._judged = 0.0
        self._wrong_until = 0.0
        self._unranged_until = 0.0

    def cost(self) -> float | None:
        """Seconds that a typical segment would take, as far as is known; None where nothing is, or only long ago."""
        if self.throughput is None or self._clock() - self._judged > _LATELY:
            return None
        return (self.latency or 0.0) + _TYPICAL / self.throughput

    @property
    def wrong(self) -> bool:
        """It has sent wrong bytes lately."""
        return self._clock() < self._wrong_until

    @property
    def unranged(self) -> bool:
        """It has ignored a Range lately, or answered another one."""
        return self._clock() < self._unranged_until

    def note_latency(self, seconds: float) -> None:
        """The headers of a blob came after so long."""
        self.latency = _mean(self.latency, seconds)

    def note_delivered(self, count: int, seconds: float) -> None:
        """One connection brought `count` bytes in that time."""
        if count >= _JUDGED_FROM and seconds > 0:
            self.throughput = _mean(self.throughput, count / seconds)
            self._judged = self._clock()

    def note_wrong(self) -> None:
        self._wrong_until = self._clock() + _LATELY

    def note_unranged(self) -> None:
        self._unranged_until = self._clock() + _LATELY


def _mean(before: float | None, now: float) -> float:
    return now if before is None else (1 - _WEIGHT) * before + _WEIGHT * now
