"""Pacing: requests that an endpoint answers with 429 wait for their turn and go on, instead of failing."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from mirror.errors import UpstreamLimited

_FIRST_INTERVAL = 0.25
_LONGEST_INTERVAL = 10.0
_NONE_BELOW = 0.05
_RECOVERY = 0.95
"""What each answer other than 429 makes of the interval."""
_FORGOTTEN_AFTER = 120.0
"""Seconds without a 429 after which requests are sent at once again."""
_LONGEST_PAUSE = 300.0
_EXHAUSTED_FOR = 30.0


class Pacer:
    """Spaces out the requests of one kind to one endpoint, once it has answered 429: like TCP, it slows down by halves and speeds up in small steps."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`name` is the endpoint's, for errors."""
        self._name = name
        self._clock = clock
        self._interval = 0.0
        """Seconds between two requests; 0 for no limit."""
        self._next = 0.0
        self._paused_until = 0.0
        self._limited_at = -math.inf
        self._slowed_at = -math.inf

    async def turn(self, patience: float) -> float:
        """Waits for this request's turn, for `patience` seconds at most; gives the time at which it is sent, for `answered` and `limited`.

        Raises UpstreamLimited at once where the turn would come later.
        """
        began = self._clock()
        while True:
            now = self._clock()
            if now - self._limited_at > _FORGOTTEN_AFTER:
                self._interval = 0.0
            turn = max(now, self._paused_until, self._next if self._interval else 0.0)
            if turn > began + patience:
                left = turn - now
                raise UpstreamLimited(f"{self._name} has answered 429: it is asked again in {left:.0f} s", left)
            if turn <= now:
                self._next = now + self._interval
                return now
            self._next = turn + self._interval
            await asyncio.sleep(turn - now)
            if self._clock() >= self._paused_until:
                return self._clock()
            # A 429 came meanwhile, and moved everybody's turn.

    def limited(self, sent: float, retry_after: float | None, exhausted: bool) -> None:
        """Takes note of a 429 to a request that was sent then. `exhausted` is a quota that is used up, which waiting a little does not mend."""
        now = self._clock()
        self._limited_at = now
        if retry_after is None:
            retry_after = _EXHAUSTED_FOR if exhausted else 0.0
        if sent > self._slowed_at:
            # Those that were sent before the last change say nothing of it.
            self._slowed_at = now
            self._interval = min(max(2 * self._interval, _FIRST_INTERVAL), _LONGEST_INTERVAL)
        self._paused_until = max(self._paused_until, now + min(max(retry_after, self._interval), _LONGEST_PAUSE))
        self._next = max(self._next, self._paused_until)

    def answered(self) -> None:
        """Takes note of an answer other than 429."""
        if self._interval:
            self._interval *= _RECOVERY
            if self._interval < _NONE_BELOW:
                self._interval = 0.0
