"""Looks whether another mirror, or a bucket, lives: while somebody waits for it, and while it does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable

from mirror.errors import UpstreamUnreachable
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_PATIENCE = 0.5
"""Seconds for which somebody waits before it is looked at."""
_INTERVAL = 1.0
"""Seconds between two looks."""
_STEP = 0.02
"""Seconds in which this process can take note of an answer that is there. One that is busier than that waits for longer."""


class Watch:
    """Whether one mirror, or a bucket, lives, as this process knows."""

    def __init__(
        self,
        name: str,
        look: Callable[[], Awaitable[bool]],
        on_change: Callable[[bool], None],
        why: Callable[[], str] = lambda: "it does not answer",
        patience: float = _PATIENCE,
        seconds: float = math.inf,
    ) -> None:
        """`name` is for messages, such as "the mirror http://mirror.lan:5000"; `look` asks whether it lives, and does not raise; `why` says what is wrong with it; `patience` is for how many
        seconds somebody waits before it is looked at. One that lives answers within `seconds`, or sends something else."""
        self.alive = True
        self._name = name
        self._look = look
        self._on_change = on_change
        self._why = why
        self._patience = patience
        self._seconds = seconds
        self._heard = 0
        """How often something has come from it."""
        self._waiting: dict[asyncio.Timeout, float] = {}
        """What waits for it, and since when in the event loop's time."""
        self._looking_at_once = False
        self._looking = BackgroundTask(self._go_on_looking)

    async def aclose(self) -> None:
        await self._looking.aclose()

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Waits within it for an answer, or for more of one. Raises UpstreamUnreachable as soon as the mirror is found dead."""
        try:
            async with asyncio.timeout(None) as scope:
                self._waiting[scope] = asyncio.get_running_loop().time()
                self._looking.start()
                try:
                    yield
                    self._heard += 1
                finally:
                    del self._waiting[scope]
        except TimeoutError:
            raise UpstreamUnreachable(f"{self._name} no longer answers") from None

    def look_now(self) -> None:
        """Looks once, and until it lives."""
        self._looking_at_once = True
        self._looking.start()

    def note_dead(self) -> None:
        """Call this when there was no connection. From then on it is looked at until it lives."""
        self._set(False)
        self._looking.start()

    async def _go_on_looking(self) -> None:
        pause = self._patience
        if self._looking_at_once:
            self._looking_at_once = False
            self._set(await self._look())
        while self._waiting or not self.alive:
            await asyncio.sleep(pause)
            pause = self._patience
            now = asyncio.get_running_loop().time()
            if not self.alive or any(now - since >= self._patience for since in self._waiting.values()):
                self._set(await self._lives())
                pause = _INTERVAL

    async def _lives(self) -> bool:
        """Looks. One that has more to send than its network takes lives, though its answer comes late."""
        look = asyncio.ensure_future(self._look())
        try:
            heard, left = self._heard, self._seconds
            while left > 0 and not look.done():
                await asyncio.wait([look], timeout=_STEP)
                left = left - _STEP if heard == self._heard else self._seconds
                heard = self._heard
            return look.done() and look.result()
        finally:
            look.cancel()
            await asyncio.wait([look])

    def _set(self, alive: bool) -> None:
        if alive == self.alive:
            return
        self.alive = alive
        self._on_change(alive)
        if alive:
            log.info("%s is back", self._name)
            return
        log.warning("%s is not asked until it is well again: %s", self._name, self._why())
        now = asyncio.get_running_loop().time()
        for scope in self._waiting:
            scope.reschedule(now)
