"""The health of an endpoint: a circuit breaker, and the latency and throughput of recent blobs."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mirror.backoff import doubled

_FAILURES = 3
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0

MOST_ACTIVE = 512
"""Connections that fetch blobs from one endpoint at once. Each needs a thread, and there are 1,024 for all endpoints (receiver.py)."""

_WEIGHT = 0.3
"""The weight of the newest observation in the moving average."""
_LATELY = 300.0
"""Seconds for which an observation counts; then the endpoint is tried again."""
_MOST_REFUSED = 1000
_JUDGED_FROM = 1024 * 1024
"""Bytes from which on a finished body counts for the throughput."""
_MEASURED_FROM = 1.0
"""Seconds from which on an unfinished body counts for the throughput."""
AS_GOOD = 1.5
"""Endpoints within this factor of the best one keep the configured order."""
_TYPICAL = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """The health of an endpoint, for /readyz. `state` is ``ok``, ``failing`` (still in use), ``down`` (paused until `asked_again`) or ``wrong`` (it sent wrong bytes, and is
    asked for blobs last).

    `latency` is the time until a blob's response headers, in seconds; `throughput` that of one connection, in bytes per second. `pulls_left` of `pulls` remain in
    upstream's rate limit, if it states one. `token_latency` is how many seconds its last token took, None if it had none.
    """

    url: str
    state: str
    last_error: str | None
    latency: float | None
    throughput: float | None
    heard: float
    """When its last request ended, in seconds since the epoch."""
    asked_again: float | None
    """When it may be asked again if it is down, in seconds since the epoch."""
    pulls: int | None
    pulls_left: int | None
    token_latency: float | None


class Breaker:
    """A circuit breaker. It opens after three failures in a row to connect, or failures of three different repositories.

    While it is open, it lets one request through after each pause: 1 s, doubling up to 60 s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, on_outcome: Callable[[bool], None] | None = None) -> None:
        """`on_outcome` is called after each request, with False while the breaker is open."""
        self._clock = clock
        self._on_outcome = on_outcome
        self._failures = 0
        self._repositories: set[str] = set()
        """Those that failed since the last success, though a connection was made."""
        self._closed_again = 0.0
        self.heard = 0.0
        """When the last request ended, in seconds since the epoch."""
        self.last_error: str | None = None

    @property
    def _evidence(self) -> int:
        return self._failures + len(self._repositories)

    @property
    def state(self) -> str:
        return "ok" if not self._evidence else "failing" if self._evidence < _FAILURES else "down"

    @property
    def pause_left(self) -> float | None:
        """Seconds until the endpoint may be asked again; None if it is not down."""
        return max(0.0, self._closed_again - self._clock()) if self.state == "down" else None

    def allows(self, repository: str | None = None) -> bool:
        """Returns whether the endpoint may be asked now. If the breaker is open, this lets one request through and begins the next pause.

        For a `repository` that has failed the pause is twice as long, so that a request for another one, which may succeed, comes first.
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
        """Records a failure: to connect, or of a `repository` if a connection was made, which says little about others."""
        if repository is None or (self._evidence >= _FAILURES and repository not in self._repositories):
            self._failures += 1
        elif self._evidence < _FAILURES:
            self._repositories.add(repository)
        self.last_error = error
        self._closed_again = self._clock() + self._pause()
        self._note()

    def _note(self) -> None:
        self.heard = time.time()
        if self._on_outcome is not None:
            self._on_outcome(self.state != "down")

    def _pause(self) -> float:
        return doubled(_FIRST_PAUSE, max(self._evidence - _FAILURES, 0), _LONGEST_PAUSE)


class Standing:
    """Which endpoints are asked last: those that a later one overtook, and those that refused a repository. Both expire."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.latency: float | None = None
        """The moving average of the seconds until a document was received, or a blob's headers."""
        self._clock = clock
        self._refused: OrderedDict[str, float] = OrderedDict()
        self._refusing: set[str] = set()
        """Repositories refused since the last successful answer; from three on, others are asked first for all."""
        self._refusing_until = 0.0
        self._lied_until = 0.0
        self._overtaken_until = 0.0
        self._probes = 0
        self._probe_from = 0.0

    def is_last(self, repository: str) -> bool:
        """Returns whether others should be asked for this repository first."""
        now = self._clock()
        refuses_all = len(self._refusing) >= _FAILURES and now < self._refusing_until
        return refuses_all or now < max(self._lied_until, self._overtaken_until) or now < self._refused.get(repository, 0.0)

    def answered(self, seconds: float, quick: float) -> None:
        """Records a successful answer; one within `quick` seconds makes up for being overtaken."""
        self.latency = _mean(self.latency, seconds)
        self._refusing.clear()
        if seconds <= quick:
            self._overtaken_until, self._probes = 0.0, 0

    def overtaken(self) -> None:
        """Records that an endpoint that was asked later answered first."""
        now = self._clock()
        self._overtaken_until = now + _LATELY
        self._probe_from = max(self._probe_from, now + _FIRST_PAUSE)

    def refused(self, repository: str, *, of_all: bool = True) -> None:
        """Records an answer that no registry gives for what it has: a refusal, a web page, wrong bytes. `of_all` is False if it says nothing of other repositories."""
        self._refused[repository] = self._clock() + _LATELY
        if of_all:
            self._refusing_until = self._refused[repository]
            if len(self._refusing) < _FAILURES:
                self._refusing.add(repository)
        self._refused.move_to_end(repository)
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)

    def lied(self) -> None:
        """Records a document that is not what its digest says: it says the same of any repository."""
        self._lied_until = self._clock() + _LATELY

    def probe_due(self, state: str) -> bool:
        """Returns whether an endpoint in this state of its breaker should be probed now; the next time is after a pause, from 1 s doubling up to 60 s."""
        now = self._clock()
        if now < self._probe_from or (state == "ok" and now >= self._overtaken_until):
            return False
        self._probe_from = now + doubled(_FIRST_PAUSE, self._probes, _LONGEST_PAUSE)
        self._probes += 1
        return True


class Lease:
    """A connection that fetches a blob, for as long as it is open. It measures the throughput."""

    __slots__ = ("_delivery", "_paused", "began", "taken")

    def __init__(self, delivery: Delivery) -> None:
        self._paused: float | None = None
        self.began: float | None = None
        """When the headers were received."""
        self.taken = 0
        """Bytes of the body received so far."""
        self._delivery = delivery

    def pause(self) -> None:
        """Excludes the time until `resume` from the measurement: nothing is received on purpose."""
        self._paused = self._delivery.now()

    def resume(self) -> None:
        if self.began is not None and self._paused is not None:
            self.began += self._delivery.now() - self._paused
        self._paused = None

    @property
    def seconds(self) -> float:
        """Seconds measured since the headers were received; 0 before."""
        if self.began is None:
            return 0.0
        return (self._delivery.now() if self._paused is None else self._paused) - self.began

    def end(self) -> None:
        """Ends the lease. Idempotent."""
        self._delivery.end(self)


class Delivery:
    """Latency, throughput and correctness of the blobs that an endpoint sent. All observations expire, so that each endpoint is tried again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.latency: float | None = None
        self._mean: float | None = None
        self._clock = clock
        self._leases: set[Lease] = set()
        self._slots = asyncio.Semaphore(MOST_ACTIVE)
        self._judged = 0.0
        self._wrong_until = 0.0
        self._unranged_until = 0.0

    def now(self) -> float:
        return self._clock()

    @property
    def active(self) -> int:
        """The number of connections that fetch blobs from it now."""
        return len(self._leases)

    @property
    def throughput(self) -> float | None:
        """The throughput of one connection in bytes per second; None without a recent observation."""
        live = [lease.taken / lease.seconds for lease in self._leases if lease.seconds > _MEASURED_FROM]
        if live:
            return _mean(self._mean, sum(live) / len(live))
        return self._mean if self._clock() - self._judged <= _LATELY else None

    def cost(self) -> float | None:
        """Returns the seconds that a typical segment would take; None without a recent observation."""
        throughput = self.throughput
        return None if throughput is None else (self.latency or 0.0) + _TYPICAL / max(throughput, 1.0)

    @property
    def full(self) -> bool:
        """True if `lease` would wait now."""
        return self._slots.locked()

    async def lease(self) -> Lease:
        """Returns the lease of a new connection; waits while there are `MOST_ACTIVE`."""
        await self._slots.acquire()
        lease = Lease(self)
        self._leases.add(lease)
        return lease

    def begin(self, lease: Lease, latency: float) -> None:
        """Call this when the headers were received; `latency` is in seconds."""
        lease.began = self._clock()
        self.latency = _mean(self.latency, latency)

    def end(self, lease: Lease) -> None:
        """Ends a lease, and adds its throughput to the average."""
        if lease in self._leases:
            self._leases.discard(lease)
            self._slots.release()
            if lease.began is not None and lease.taken >= _JUDGED_FROM:
                self._judged = self._clock()
                self._mean = _mean(self._mean, lease.taken / max(lease.seconds, 1e-6))

    @property
    def wrong(self) -> bool:
        """True if it sent wrong bytes recently."""
        return self._clock() < self._wrong_until

    @property
    def unranged(self) -> bool:
        """True if it recently ignored a Range, or answered with another range."""
        return self._clock() < self._unranged_until

    def note_wrong(self) -> None:
        self._wrong_until = self._clock() + _LATELY

    def note_unranged(self) -> None:
        self._unranged_until = self._clock() + _LATELY


def _mean(before: float | None, now: float) -> float:
    return now if before is None else (1 - _WEIGHT) * before + _WEIGHT * now
