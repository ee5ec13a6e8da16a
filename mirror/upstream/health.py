"""Whether an endpoint is worth asking: a circuit breaker each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_FAILURES = 3
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """For /readyz. `state` is ``ok``, ``failing`` (but still asked) or ``open`` (left alone for a while)."""

    url: str
    state: str
    last_error: str | None


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
