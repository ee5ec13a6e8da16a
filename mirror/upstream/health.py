"""The health of an endpoint: a circuit breaker, and the latency and throughput of its latest blobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from mirror.backoff import doubled

_FAILURES = 3
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0

MOST_ACTIVE = 512
"""Connections that fetch blobs from one endpoint at once: each needs a thread of its own, and there are 1,024 for all endpoints (receiver.py)."""

_WEIGHT = 0.3
"""Of the newest observation in the mean."""
_LATELY = 300.0
"""Seconds for which a judgement holds; then the endpoint gets another chance."""
_JUDGED_FROM = 1024 * 1024
"""Bytes from which on a body tells something of the throughput."""
_TELLING = 1.0
"""Seconds from which on a body that is still coming tells something."""
_TYPICAL = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """For /readyz. `state` is ``ok``, ``failing`` (but still asked), ``down`` (left alone until `asked_again`) or ``wrong`` (asked for blobs last, because it lied).

    `latency` is the time until a blob's response headers, in seconds; `throughput` that of one connection, in bytes per second. `pulls_left` of `pulls` is what
    upstream still allows, where it says so.
    """

    url: str
    state: str
    last_error: str | None
    latency: float | None
    throughput: float | None
    heard: float
    """When it was last heard of, in seconds since the epoch."""
    asked_again: float | None
    """When one that is down may be asked again, in seconds since the epoch."""
    pulls: int | None
    pulls_left: int | None


class Breaker:
    """A circuit breaker. It opens on evidence about the endpoint: three failures in a row to connect, or of three different repositories.

    Then one request at a time is let through, after pauses of 1 s, doubling to 60 s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, told: Callable[[bool], None] | None = None) -> None:
        """`told` is called after each outcome, with False while the breaker is open."""
        self._clock = clock
        self._told = told
        self._failures = 0
        self._repositories: set[str] = set()
        """Those that have failed since the last success, though there was a connection."""
        self._closed_again = 0.0
        self.heard = 0.0
        """When there was an outcome last, in seconds since the epoch."""
        self.last_error: str | None = None

    @property
    def _evidence(self) -> int:
        return self._failures + len(self._repositories)

    @property
    def state(self) -> str:
        return "ok" if not self._evidence else "failing" if self._evidence < _FAILURES else "down"

    @property
    def pause_left(self) -> float | None:
        """Seconds until it may be asked again, 0 where it may now; None while it is not down."""
        return max(0.0, self._closed_again - self._clock()) if self.state == "down" else None

    def allows(self, repository: str | None = None) -> bool:
        """True when the endpoint may be asked now. An open breaker lets one request through, and the next only after a pause.

        For a `repository` that has failed already the pause is twice as long, so that another one's request comes before: it may be that others are well.
        """
        if self._evidence < _FAILURES:
            return True
        now = self._clock()
        if now < self._closed_again + (self._pause() if repository in self._repositories else 0.0):
            return False
        self._closed_again = now + self._pause()
        return True

    def succeeded(self) -> None:
        self._failures, self.last_error = 0, None
        self._repositories.clear()
        self._note()

    def failed(self, error: str, repository: str | None = None) -> None:
        """Takes note of a failure; that of a `repository` where there was a connection, which says little of others."""
        if repository is None or (self._evidence >= _FAILURES and repository not in self._repositories):
            self._failures += 1
        elif self._evidence < _FAILURES:
            self._repositories.add(repository)
        self.last_error = error
        self._closed_again = self._clock() + self._pause()
        self._note()

    def _note(self) -> None:
        self.heard = time.time()
        if self._told is not None:
            self._told(self.state != "down")

    def _pause(self) -> float:
        return doubled(_FIRST_PAUSE, max(self._evidence - _FAILURES, 0), _LONGEST_PAUSE)


class Lease:
    """One connection that fetches a blob, from opening to end. Its throughput is measured."""

    __slots__ = ("_delivery", "began", "taken")

    def __init__(self, delivery: Delivery) -> None:
        self.began: float | None = None
        """When the headers came."""
        self.taken = 0
        """Bytes of the body so far."""
        self._delivery = delivery

    def end(self) -> None:
        """Ends the lease. Idempotent."""
        self._delivery.end(self)


class Delivery:
    """Latency, throughput and correctness of the blobs an endpoint has sent. Everything expires, so that each endpoint is tried again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.latency: float | None = None
        self._mean: float | None = None
        self._clock = clock
        self._leases: set[Lease] = set()
        self._slots = asyncio.Semaphore(MOST_ACTIVE)
        self._judged = 0.0
        self._wrong_until = 0.0
        self._unranged_until = 0.0

    @property
    def active(self) -> int:
        """Connections that are fetching blobs from it now."""
        return len(self._leases)

    @property
    def throughput(self) -> float | None:
        """Of one connection, in bytes per second; None where nothing is known, or only from long ago."""
        now = self._clock()
        live = [lease.taken / (now - lease.began) for lease in self._leases if lease.began and now - lease.began > _TELLING]
        if live:
            return _mean(self._mean, sum(live) / len(live))
        return self._mean if now - self._judged <= _LATELY else None

    def cost(self) -> float | None:
        """Seconds that a typical segment would take, as far as is known; None where nothing is."""
        throughput = self.throughput
        return None if throughput is None else (self.latency or 0.0) + _TYPICAL / max(throughput, 1.0)

    @property
    def full(self) -> bool:
        """True while the next `lease` would wait."""
        return self._slots.locked()

    async def lease(self) -> Lease:
        """Counts a connection in, once there are fewer than `MOST_ACTIVE`."""
        await self._slots.acquire()
        lease = Lease(self)
        self._leases.add(lease)
        return lease

    def begin(self, lease: Lease, latency: float) -> None:
        """The headers came, after so many seconds."""
        lease.began = self._clock()
        self.latency = _mean(self.latency, latency)

    def end(self, lease: Lease) -> None:
        """Counts a connection out, and takes its throughput into the mean."""
        if lease in self._leases:
            self._leases.discard(lease)
            self._slots.release()
            if lease.began is not None and lease.taken >= _JUDGED_FROM:
                self._judged = self._clock()
                self._mean = _mean(self._mean, lease.taken / max(self._judged - lease.began, 1e-6))

    @property
    def wrong(self) -> bool:
        """It has sent wrong bytes lately."""
        return self._clock() < self._wrong_until

    @property
    def unranged(self) -> bool:
        """It has ignored a Range lately, or answered another one."""
        return self._clock() < self._unranged_until

    def note_wrong(self) -> None:
        self._wrong_until = self._clock() + _LATELY

    def note_unranged(self) -> None:
        self._unranged_until = self._clock() + _LATELY


def _mean(before: float | None, now: float) -> float:
    return now if before is None else (1 - _WEIGHT) * before + _WEIGHT * now
