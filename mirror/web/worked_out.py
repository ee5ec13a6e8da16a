"""What a page shows and takes work to find out: anybody may look, and as often as they like."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mirror.tasks import SingleFlight

_T = TypeVar("_T")
_FRESH = 5.0
"""Seconds for which it is shown to whoever looks."""


class WorkedOut(Generic[_T]):
    """Is worked out for all who look at the same time, and once in a while; anew for an admin."""

    def __init__(self, work: Callable[[], Awaitable[_T]]) -> None:
        self._work = work
        self._known: tuple[float, _T] | None = None
        self._changes = 0
        self._works: SingleFlight[_T] = SingleFlight()

    async def aclose(self) -> None:
        await self._works.aclose()

    def changed(self) -> None:
        """Has it worked out anew for whoever looks next."""
        self._known = None
        self._changes += 1

    async def get(self, *, anew: bool) -> _T:
        """Returns it, `_FRESH` old at most, or as it is now if `anew`. Raises what the work raises."""
        known = self._known
        if not anew and known is not None and time.monotonic() - known[0] <= _FRESH:
            return known[1]
        found, began_before = await self._works.do("work", self._find_out)
        if anew and began_before:
            found, _ = await self._works.do("work", self._find_out)
        return found

    async def _find_out(self) -> _T:
        began, changes = time.monotonic(), self._changes
        found = await self._work()
        if changes == self._changes:
            self._known = began, found
        return found
