"""Wakes tasks that wait for progress. The more tasks wait, the less often, so that waking them does not slow down the download."""

from __future__ import annotations

import asyncio

_PER_WAITER = 0.00025
"""Seconds between two rings, for each waiting task."""
_LONGEST = 0.05
"""Seconds between two rings, at most."""


class Notifier:
    """A condition without a state: each ring wakes the tasks that wait at that moment. Belongs to the event loop in which it is created."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        self._rung = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Waits for the next ring. Check first whether there is anything to wait for: earlier rings do not count."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def ring(self) -> None:
        """Wakes all waiting tasks, at once or within 50 ms: the more tasks, the later."""
        if self._waiters and self._timer is None:
            delay = self._rung + min(len(self._waiters) * _PER_WAITER, _LONGEST) - self._loop.time()
            if delay <= 0:
                self.ring_now()
            else:
                self._timer = self._loop.call_later(delay, self.ring_now)

    def ring_now(self) -> None:
        """Wakes all waiting tasks at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._rung = self._loop.time()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
