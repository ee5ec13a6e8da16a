"""Wakes those who wait for progress; many of them less often than few, so that their number does not slow what they wait for."""

from __future__ import annotations

import asyncio

_PER_WAITER = 0.00025
_LONGEST = 0.05


class Notifier:
    """All of its methods belong to the event loop that it was made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        self._rung = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Waits for the next ring. Whoever waits looks first whether it need: rings are not kept for late comers."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def ring(self) -> None:
        """Wakes everybody, now or within 50 ms: the more wait, the later, up to that."""
        if self._waiters and self._timer is None:
            delay = self._rung + min(len(self._waiters) * _PER_WAITER, _LONGEST) - self._loop.time()
            if delay <= 0:
                self.ring_now()
            else:
                self._timer = self._loop.call_later(delay, self.ring_now)

    def ring_now(self) -> None:
        """Wakes everybody."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._rung = self._loop.time()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
