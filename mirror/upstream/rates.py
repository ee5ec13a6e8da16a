"""Caps on the rate of downloads, for all registries together and for each.

`Bucket`, `Queue` and `Parts` decide without I/O and without a clock: callers pass the time in seconds. `Limiter` runs them in an event loop.

Several worker processes share one cap. Each publishes, in memory that all of them have, how many of its blobs wait for their turn, and uses that part of the cap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_BURST = 0.2
"""Seconds of the rate that may be used at once after a pause, and by which a late event loop may be made up for."""
_RESERVE = 0.1
"""Seconds of the rate that are left for clients: what no client waits for is received only from what they have not used for so long. A client's connection
is busy between its turns, with receiving and writing, and must not find the rate used up by others meanwhile."""
_DEBT = 1.0
"""Seconds of the rate for which everybody waits, at most, after upstream has sent more than was granted."""
_GRANTS = 40
"""Grants in a second: each is that share of the rate."""
_SMALLEST, _LARGEST = 1024, 256 * 1024
"""Bytes of a grant, at least and at most."""
_BUFFERED = 1 / 8
"""Seconds of the rate that the kernel buffers for a connection, which is what upstream sends ahead of the turns. A round trip that takes longer than this makes
one connection slower than the cap."""
_SMALLEST_BUFFER, _LARGEST_BUFFER = 8 * 1024, 64 * 1024
"""Bytes of such a buffer. Above, the kernel's own choice is as good, and grows with the distance."""
_LATELY = 3.0
"""Seconds after its latest turn for which a blob may count as throttled."""
_PATIENCE = 10.0
"""Seconds after which a blob that no client waits for gets a turn beside those that clients wait for: a connection without progress would be closed by upstream."""
_BALANCE = 0.05
"""Seconds between two looks at what other processes need."""
_SMOOTH = 0.2
"""Seconds after which an earlier need counts half."""
_OLD = 1.0
"""Seconds after which what a process has published no longer counts: it hangs, or is gone."""
_LEAST = 0.02
"""The need of a process that has begun to download, in blobs that wait."""
_AHEAD = 0.01
"""What a blob that no client waits for counts, beside one that a client waits for."""


class Bucket:
    """A token bucket: bytes that may be received now at a rate in bytes per second."""

    def __init__(self, cap: int, now: float) -> None:
        self.cap = cap
        """Bytes per second of all processes together."""
        self.rate = float(cap)
        """Bytes per second of this process."""
        self._bytes = 0.0
        self._since = now

    @property
    def grant(self) -> int:
        """Bytes of one grant."""
        return min(max(int(self.rate) // _GRANTS, _SMALLEST), _LARGEST)

    def change(self, cap: int, part: float, now: float) -> None:
        """Changes the cap, and the part of it that is this process's."""
        self.wait(now)
        changed, self.cap, self.rate = cap != self.cap, cap, cap * part
        # Nobody waits long for what was received at a higher rate.
        self._bytes = max(self._bytes, -float(self.grant) if changed else -self.rate * _DEBT)

    def wait(self, now: float, *, reserve: bool = False) -> float:
        """Returns the seconds until something may be taken; 0 if it may be now. With `reserve`, the clients' reserve is not touched."""
        self._bytes = min(self._bytes + (now - self._since) * self.rate, self.rate * _BURST)
        self._since = now
        missing = (self.rate * _RESERVE if reserve else 0.0) - self._bytes
        # Less than a byte is an error of rounding.
        return 0.0 if missing < 1 else missing / self.rate

    def charge(self, count: int) -> None:
        """Takes bytes out like `take`, but makes nobody wait longer than `_DEBT`."""
        self._bytes = max(self._bytes - count, min(self._bytes, -self.rate * _DEBT))

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
        self.waiting = 0
        """Connections that wait for their turn."""
        self.queued = self.counted = 0.0
        """Since when any of them waits, and until when that has been counted."""
        self.served = float("-inf")
        """When its latest turn came."""
        self.tag = 0.0
        """When its next turn is, in the queue's virtual time."""

    def throttled(self, now: float) -> bool:
        """Returns whether the cap, not upstream, is what makes it slow."""
        if not self.waiting and now - self.served > _LATELY:
            return False
        waiting = now - self.queued if self.waiting else 0.0
        return self.waited + waiting > max(self.received, 0.01)


@dataclass(eq=False)
class Turn:
    """One connection's wish to receive."""

    share: Share
    tag: float
    since: float
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    bytes: int = 0
    """Bytes that it may receive; 0 without a limit."""
    delayed: bool = False
    """True if it had to wait."""
    came: float = 0.0
    """When it came."""


class Parts:
    """Which part of each cap a process may use. Belongs to a `Queue`."""

    def __init__(self, shared: memoryview[float], row: int, registries: Sequence[str]) -> None:
        """`shared` holds floats and belongs to all processes: `width(registries)` of them for each, of which this one writes those of number `row`."""
        self._shared = shared
        self._width = self.width(registries)
        self._columns: dict[str | None, int] = {name: 1 + number for number, name in enumerate((None, *registries))}
        self._row = row * self._width
        self._needs = [0.0] * self._width
        self._measured = 0.0

    @staticmethod
    def width(registries: Sequence[str]) -> int:
        """Returns how many floats a process has: when it wrote them, and its need for all registries and for each."""
        return 2 + len(registries)

    def publish(self, now: float, waited: Mapping[str | None, float], active: bool) -> None:
        """Publishes how many blobs wait, on average lately, of all registries (None) and of each.

        `waited` are the seconds that they have waited since the last call; `active` is True if this process downloads at all.
        """
        elapsed = max(now - self._measured, 1e-6)
        self._measured = now
        old = 0.5 ** (elapsed / _SMOOTH)
        for name, column in self._columns.items():
            self._needs[column] = self._needs[column] * old + waited.get(name, 0.0) / elapsed * (1 - old)
            self._shared[self._row + column] = max(self._needs[column], _LEAST) if active else 0.0
        self._shared[self._row] = now if active else 0.0

    def of(self, registry: str | None, now: float) -> float:
        """Returns the part of the cap of a registry, or of all (None), that this process may use now: as much as it needs of what all need."""
        column = self._columns.get(registry)
        if column is None:
            # One that the settings did not have at the start: nobody publishes what it needs.
            return self._width / len(self._shared)
        rows = range(0, len(self._shared), self._width)
        others = sum(self._shared[row + column] for row in rows if row != self._row and now - self._shared[row] < _OLD)
        own = max(self._shared[self._row + column], _LEAST)
        return own / (own + others)


class Queue:
    """Whose turn it is: round-robin among blobs by bytes (start-time fair queueing), those that clients wait for first."""

    def __init__(self, parts: Parts | None = None) -> None:
        """`parts` is None for the only process."""
        self._parts = parts
        self._everything: Bucket | None = None
        self._registries: dict[str, Bucket] = {}
        self._turns: list[Turn] = []
        self._waited: dict[str | None, float] = {}
        """Seconds for which blobs have waited since `_balanced`, of all registries (None) and of each."""
        self._virtual = 0.0
        self._served = float("-inf")
        self._balanced = float("-inf")

    def set(self, rate: int, rates: Mapping[str, int], now: float) -> None:
        """Sets the caps in bytes per second, for all registries and for some; 0 is none."""
        self._everything = self._changed(self._everything, None, rate, now)
        self._registries = {
            name: bucket
            for name, one in rates.items()
            if (bucket := self._changed(self._registries.get(name), name, one, now)) is not None
        }

    def _changed(self, bucket: Bucket | None, name: str | None, cap: int, now: float) -> Bucket | None:
        if not cap:
            return None
        bucket = Bucket(cap, now) if bucket is None else bucket
        bucket.change(cap, 1.0 if self._parts is None else self._parts.of(name, now), now)
        return bucket

    def capped(self, registry: str) -> bool:
        """Returns whether a cap holds for a registry."""
        return self._everything is not None or registry in self._registries

    def caps(self, registry: str) -> list[Bucket]:
        """Returns the caps that hold for a registry."""
        found = (self._everything, self._registries.get(registry))
        return [bucket for bucket in found if bucket is not None]

    def receive_buffer(self, registry: str) -> int | None:
        """Returns the size in bytes of the kernel's receive buffer for a new connection; None to leave it to the kernel."""
        caps = [bucket.cap for bucket in self.caps(registry)]
        size = int(min(caps, default=0) * _BUFFERED)
        return max(size, _SMALLEST_BUFFER) if caps and size <= _LARGEST_BUFFER else None

    def join(self, share: Share, now: float) -> Turn:
        turn = Turn(share, max(self._virtual, share.tag), now)
        grant = min((bucket.grant for bucket in self.caps(share.registry)), default=0)
        share.tag = turn.tag + grant
        if not share.waiting:
            share.queued = share.counted = now
        share.waiting += 1
        self._turns.append(turn)
        return turn

    def leave(self, turn: Turn, now: float) -> None:
        """Removes a turn, if it has not come."""
        if turn in self._turns:
            self._turns.remove(turn)
            self._count(turn.share, now)
            turn.share.waiting -= 1

    def _count(self, share: Share, now: float) -> None:
        seconds = (now - share.counted) * (1.0 if share.wanted else _AHEAD)
        share.counted = now
        if self._parts is None:
            return
        for name in (None, share.registry):
            self._waited[name] = self._waited.get(name, 0.0) + seconds

    def unused(self, turn: Turn, count: int) -> None:
        """Gives back bytes of a turn that were not received."""
        turn.share.tag -= count
        for bucket in self.caps(turn.share.registry):
            bucket.take(-count)

    def charge(self, registry: str, count: int) -> None:
        """Charges a registry's caps for bytes that the kernel has received ahead of any turn. Negative once a turn has read them."""
        for bucket in self.caps(registry):
            bucket.charge(count)

    def next(self, now: float) -> tuple[list[Turn], float | None]:
        """Returns the turns that have come, and the seconds until it is to be called again; None if it need not be."""
        self._balance(now)
        ready: list[Turn] = []
        waits: list[float] = []
        for turn in sorted(self._turns, key=lambda turn: (self._yields(turn, now), turn.tag)):
            caps = self.caps(turn.share.registry)
            reserve = self._yields(turn, now)
            if (wait := max((bucket.wait(now, reserve=reserve) for bucket in caps), default=0.0)) > 0:
                waits.append(wait)
                continue
            turn.bytes = min((bucket.grant for bucket in caps), default=0)
            for bucket in caps:
                bucket.take(turn.bytes)
            self._virtual = max(self._virtual, turn.tag)
            self.leave(turn, now)
            ready.append(turn)
        if ready:
            self._served = now
        if self._parts is not None and self._active(now) and self.limits:
            waits.append(_BALANCE)
        return ready, min(waits, default=None)

    @staticmethod
    def _yields(turn: Turn, now: float) -> bool:
        """Returns whether clients' turns come before it."""
        return not turn.share.wanted and now - turn.since < _PATIENCE

    @property
    def limits(self) -> bool:
        """True if any cap is set."""
        return self._everything is not None or bool(self._registries)

    def _active(self, now: float) -> bool:
        return bool(self._turns) or now - self._served < _OLD

    def _balance(self, now: float) -> None:
        """Publishes what this process needs, and takes its part of each cap."""
        if self._parts is None or now - self._balanced < _BALANCE:
            return
        self._balanced = now
        for share in {turn.share for turn in self._turns}:
            self._count(share, now)
        self._parts.publish(now, self._waited, self._active(now))
        self._waited.clear()
        for name, bucket in ((None, self._everything), *self._registries.items()):
            if bucket is not None:
                bucket.change(bucket.cap, self._parts.of(name, now), now)


class Limiter:
    """Holds the connections of one event loop to the caps."""

    def __init__(self, parts: Parts | None = None) -> None:
        self._queue = Queue(parts)
        self._timer: asyncio.TimerHandle | None = None
        self.capped = self._queue.capped
        self.receive_buffer = self._queue.receive_buffer

    def set(self, rate: int, rates: Mapping[str, int]) -> None:
        """Sets the caps, as `Queue.set`. Downloads under way keep to them from now on."""
        self._queue.set(rate, rates, _now())
        self._run()

    async def turn(self, share: Share) -> Turn:
        """Waits for a blob's turn and returns it. Call `received` afterwards."""
        began = _now()
        turn = self._queue.join(share, began)
        self._run()
        turn.delayed = not turn.granted.is_set()
        try:
            await turn.granted.wait()
        except asyncio.CancelledError:
            self._queue.leave(turn, _now())
            self._queue.unused(turn, turn.bytes)
            self._run()
            raise
        finally:
            turn.came = share.served = _now()
            share.waited = share.waited / 2 + turn.came - began
        return turn

    def received(self, turn: Turn, count: int, ahead: int) -> None:
        """Records the bytes that were received in a turn, and the change since the turn before in the number of bytes that the kernel has received ahead.

        What a read that began before there was a cap has received beyond its grant costs nothing.
        """
        share = turn.share
        share.received = share.received / 2 + _now() - turn.came
        self._queue.unused(turn, max(turn.bytes - count, 0))
        self._queue.charge(share.registry, ahead)
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
