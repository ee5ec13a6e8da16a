"""Pacing: after a 429, requests to an endpoint are spaced out and repeated instead of failing."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from mirror.errors import UpstreamLimited

_FIRST_INTERVAL = 0.25
_LONGEST_INTERVAL = 10.0
_NONE_BELOW = 0.05
_RECOVERY = 0.95
"""The factor by which each answer other than 429 shortens the interval."""
_FORGOTTEN_AFTER = 120.0
"""Seconds without a 429 after which the interval is reset."""
_LONGEST_PAUSE = 300.0
"""Seconds at most that a Retry-After counts for."""
_LONGEST_PAUSE_OF_ALL = 60.0
"""The same for a pause of all repositories of an endpoint, which two of them cause."""
_MOST_REPOSITORIES = 1000
_EXHAUSTED_FOR = 30.0


class Pacer:
    """Spaces out requests after a 429. As in TCP's congestion control, the rate is halved at once and recovers in small steps."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, longest_pause: float = _LONGEST_PAUSE) -> None:
        """`name` is the endpoint's, for errors; a Retry-After counts for `longest_pause` seconds at most."""
        self._name = name
        self._clock = clock
        self._longest_pause = longest_pause
        self._interval = 0.0
        """Seconds between two requests; 0 for no limit."""
        self._next = 0.0
        self._status = 429
        self._waiting: list[object] = []
        self._changed = asyncio.Event()
        self._paused_until = 0.0
        self._limited_at = -math.inf
        self._slowed_at = -math.inf
        self._answered_at = 0.0
        """The interval at the last answer."""
        self._doubling = True
        """False after an answer other than 429: then the next 429 does not double the interval."""

    async def turn(self, patience: float) -> float:
        """Waits up to `patience` seconds until the request may be sent. Returns the time, which `limited` takes.

        Raises UpstreamLimited: at once if no request may be sent within `patience`, else after it, since answers to other requests may shorten the interval.
        """
        began = self._clock()
        self._waiting.append(me := object())
        try:
            while True:
                now = self._clock()
                if now - self._limited_at > _FORGOTTEN_AFTER:
                    self._interval = 0.0
                first = max(now, self._paused_until, self._next if self._interval else 0.0)
                turn = first + self._waiting.index(me) * self._interval
                if turn <= now:
                    self._next = now + self._interval
                    return now
                if first > began + patience or now >= began + patience:
                    left = turn - now
                    raise UpstreamLimited(f"{self._name} has answered {self._status}: it is asked again in {left:.0f} s", left)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(turn, began + patience) - now):
                        await self._changed.wait()
        finally:
            self._waiting.remove(me)
            self._note_change()

    def _note_change(self) -> None:
        """Wakes the waiting requests, which compute their time again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def limited(self, sent: float, retry_after: float | None, exhausted: bool, status: int = 429) -> None:
        """Records a 429, or another `status` that means the same, to a request that was `sent` at that time. `exhausted` means that a quota is used up, so that a
        short wait does not help."""
        now = self._clock()
        self._status = status
        self._limited_at = now
        if retry_after is None:
            retry_after = _EXHAUSTED_FOR if exhausted else 0.0
        if sent > self._slowed_at:
            # Requests that were sent before the last slowdown say nothing about the current interval.
            self._slowed_at = now
            if self._doubling or not self._interval:
                self._interval = min(max(2 * self._interval, _FIRST_INTERVAL), _LONGEST_INTERVAL)
            self._doubling = True
        self._paused_until = max(self._paused_until, now + min(max(retry_after, self._interval), self._longest_pause))
        self._next = max(self._next, self._paused_until)
        self._note_change()

    @property
    def idle(self) -> bool:
        """True if requests are not spaced out."""
        return not self._interval

    def answered(self) -> None:
        """Records an answer other than 429."""
        if self._interval:
            # After several 429s in a row the interval is longer than upstream's limit demands.
            self._interval = min(self._interval, max(2 * self._answered_at, _FIRST_INTERVAL)) * _RECOVERY
            if self._interval < _NONE_BELOW:
                self._interval = 0.0
            self._next = min(self._next, self._clock() + self._interval)
            self._note_change()
        self._answered_at = self._interval
        self._doubling = False


class EndpointPacer:
    """Paces the requests of one kind to one endpoint.

    A 429 slows down requests for its repository. It slows down all repositories if two of them got a 429 without another answer in between, or if the endpoint
    states that a quota is used up.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, longest_pause: float = _LONGEST_PAUSE) -> None:
        """As in Pacer. A pause of all repositories is 60 s at most."""
        self._name = name
        self._clock = clock
        self._longest_pause = longest_pause
        self._all = Pacer(name, clock, min(longest_pause, _LONGEST_PAUSE_OF_ALL))
        self._repositories: OrderedDict[str, Pacer] = OrderedDict()
        self._limited: set[str] = set()
        """Repositories that got a 429 since the last other answer."""

    async def turn(self, repository: str, patience: float) -> float:
        """See `Pacer.turn`. Raises UpstreamLimited."""
        began = self._clock()
        if (own := self._repositories.get(repository)) is not None:
            await own.turn(patience)
        return await self._all.turn(patience - (self._clock() - began))

    def limited(self, repository: str, sent: float, retry_after: float | None, exhausted: bool, status: int = 429) -> None:
        """See `Pacer.limited`."""
        own = self._repositories.setdefault(repository, Pacer(self._name, self._clock, self._longest_pause))
        own.limited(sent, retry_after, exhausted, status)
        if len(self._repositories) > _MOST_REPOSITORIES:
            self._repositories.popitem(last=False)
        self._limited.add(repository)
        if exhausted or len(self._limited) > 1:
            self._all.limited(sent, retry_after, exhausted, status)

    def answered(self, repository: str) -> None:
        """Records an answer other than 429."""
        self._limited.clear()
        self._all.answered()
        if (own := self._repositories.get(repository)) is not None:
            own.answered()
            if own.idle:
                del self._repositories[repository]
