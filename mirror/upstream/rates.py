"""Caps on the rate of downloads, for all registries together and for each.

`Bucket` and `Queue` decide without I/O and without a clock: callers pass the time in seconds. `Limiter` runs them in an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

_BURST = 0.1
"""Seconds of the rate that may be used at once after a pause, and by which a late event loop may be made up for."""
_GRANTS = 40
"""Grants in a second: each is that share of the rate."""
_LATELY = 3.0
"""Seconds after its latest turn for which a blob may count as throttled."""
_SMALLEST, _LARGEST = 1024, 256 * 1024
"""Bytes of a grant, at least and at most."""


class Bucket:
    """A token bucket: bytes that may be received now at a rate in bytes per second."""

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._bytes = 0.0
        self._since = now

    @property
    def grant(self) -> int:
        """Bytes of one grant."""
        return min(max(self.rate // _GRANTS, _SMALLEST), _LARGEST)

    def wait(self, now: float) -> float:
        """Returns the seconds until something may be taken; 0 if it may be now."""
        self._bytes = min(self._bytes + (now - self._since) * self.rate, self.rate * _BURST)
        self._since = now
        # Less than a byte is an error of rounding.
        return 0.0 if self._bytes > -1 else -self._bytes / self.rate

    def take(self, count: int) -> None:
        """Takes bytes out, even more than there are: the next ones then wait as much longer. Negative for bytes that were not used."""
        self._bytes -= count


class Share:
    """One blob's share of a capped rate."""

    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.wanted = True
        """False if no client waits for the blob. Those that clients wait for come first."""
        self.waited = self.received = 0.0
        """Seconds, lately, for which it waited for its turn, and for bytes after that. Older ones count half with each turn."""
        self.queued: float | None = None
        """Since when it waits; None if it does not."""
        self.served = float("-inf")
        """When its latest turn came."""
        self.tag = 0.0
        """When its next turn is, in the queue's virtual time."""

    def throttled(self, now: float) -> bool:
        """Returns whether the cap, not upstream, is what makes it slow."""
        waiting = 0.0 if self.queued is None else now - self.queued
        if self.queued is None and now - self.served > _LATELY:
            return False
        return self.waited + waiting > max(self.received, 0.01)


@dataclass(eq=False)
class Turn:
    """One connection's wish to receive."""

    share: Share
    tag: float
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    bytes: int = 0


class Queue:
    """Whose turn it is: round-robin among blobs by bytes (start-time fair queueing), those that clients wait for first."""

    def __init__(self) -> None:
        self._everything: Bucket | None = None
        self._registries: dict[str, Bucket] = {}
        self._turns: list[Turn] = []
        self._virtual = 0.0

    def set(self, rate: int, rates: Mapping[str, int], now: float) -> None:
        """Sets the caps in bytes per second, for all registries and for some; 0 is none."""
        self._everything = _changed(self._everything, rate, now)
        self._registries = {
            name: bucket for name, one in rates.items() if (bucket := _changed(self._registries.get(name), one, now)) is not None
        }

    def caps(self, registry: str) -> list[Bucket]:
        """Returns the caps that hold for a registry."""
        found = (self._everything, self._registries.get(registry))
        return [bucket for bucket in found if bucket is not None]

    def join(self, share: Share) -> Turn:
        turn = Turn(share, max(self._virtual, share.tag))
        grant = min((bucket.grant for bucket in self.caps(share.registry)), default=0)
        share.tag = turn.tag + grant
        self._turns.append(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        if turn in self._turns:
            self._turns.remove(turn)

    def next(self, now: float) -> tuple[list[Turn], float | None]:
        """Returns the turns that have come, and the seconds until others may; None if nobody waits."""
        ready: list[Turn] = []
        waits: list[float] = []
        for turn in sorted(self._turns, key=lambda turn: (not turn.share.wanted, turn.tag)):
            caps = self.caps(turn.share.registry)
            if (wait := max((bucket.wait(now) for bucket in caps), default=0.0)) > 0:
                waits.append(wait)
                continue
            turn.bytes = min((bucket.grant for bucket in caps), default=0)
            for bucket in caps:
                bucket.take(turn.bytes)
            self._virtual = max(self._virtual, turn.tag)
            self._turns.remove(turn)
            ready.append(turn)
        return ready, min(waits, default=None)


def _changed(bucket: Bucket | None, rate: int, now: float) -> Bucket | None:
    if not rate:
        return None
    if bucket is None:
        return Bucket(rate, now)
    bucket.wait(now)
    bucket.rate = rate
    return bucket


class Limiter:
    """Holds the connections of one event loop to the caps."""

    def __init__(self) -> None:
        self._queue = Queue()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, rate: int, rates: Mapping[str, int]) -> None:
        """Sets the caps, as `Queue.set`. Downloads under way keep to them from now on."""
        self._queue.set(rate, rates, _now())
        self._run()

    def caps(self, registry: str) -> bool:
        """Returns whether a registry has a cap."""
        return bool(self._queue.caps(registry))

    async def turn(self, share: Share) -> int:
        """Waits for a blob's turn and returns the bytes that it may receive; 0 without a limit."""
        began = _now()
        if not self.caps(share.registry):
            share.waited /= 2
            return 0
        share.queued = began if share.queued is None else share.queued
        turn = self._queue.join(share)
        self._run()
        try:
            await turn.granted.wait()
        except asyncio.CancelledError:
            self._queue.leave(turn)
            self.unused(share.registry, turn.bytes)
            raise
        finally:
            share.queued, share.served = None, _now()
            share.waited = share.waited / 2 + _now() - began
        return turn.bytes

    def unused(self, registry: str, count: int) -> None:
        """Gives back bytes of a turn that were not received."""
        for bucket in self._queue.caps(registry):
            bucket.take(-count)
        self._run()

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ready, wait = self._queue.next(_now())
        for turn in ready:
            turn.granted.set()
        if wait is not None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._run)

    def close(self) -> None:
        """Stops its timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _now() -> float:
    return asyncio.get_running_loop().time()
