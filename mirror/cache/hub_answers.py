"""Answers of services beside the registry's API, such as Docker Hub's search: nobody waits long for them.

They are kept in memory and used again while they are fresh, and however old they are while the service fails. What did not come in time is there for the next
caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from mirror.errors import MirrorError, UpstreamBusy, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable
from mirror.tasks import SingleFlight

log = logging.getLogger(__name__)

_T = TypeVar("_T")

PATIENCE = 3.0
"""Seconds for which a person waits for a service."""
_IMPATIENCE = 0.3
"""The same after a failure within the last `_FAILING` seconds."""
_FAILING = 60.0
_FRESH = 600.0
"""Seconds for which an answer is used without asking again."""
_MOST_KEPT = 200
_MOST_REQUESTS = 8
"""Requests to all services of a kind at the same time."""
_MOST_WAITING = 100
"""Questions that are being asked, or wait for their request, at the same time."""


class HubAnswers(Generic[_T]):
    """Answers of one kind of service, over all registries. Callers that ask for the same share one request."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`what` names the service in errors, such as "the search"."""
        self._what = what
        self._clock = clock
        self._asking: SingleFlight[_T] = SingleFlight()
        self._kept: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()
        self._requests = asyncio.Semaphore(_MOST_REQUESTS)
        self._waiting = 0
        self._failed: dict[str, float] = {}
        """When each registry's service last failed."""

    async def aclose(self) -> None:
        await self._asking.aclose()

    async def get(
        self, registry: str, key: Hashable, ask: Callable[[], Awaitable[_T]], patience: float
    ) -> tuple[_T | None, MirrorError | None]:
        """Returns the answer, None if there is none at hand; and why it is missing or old, None if it is neither."""
        key = registry, key
        known = self._kept.get(key)
        if known is not None and self._clock() - known[0] < _FRESH:
            return known[1], None
        task, _ = self._asking.start(key, lambda: self._ask(registry, key, ask))
        failed = self._failed.get(registry)
        if failed is not None and self._clock() - failed < _FAILING:
            patience = min(patience, _IMPATIENCE)
        await asyncio.wait([task], timeout=patience)
        try:
            if task.done():
                return task.result(), None
            problem: MirrorError = UpstreamTimeout(f"{self._what} of {registry} did not answer in time")
            self._failed[registry] = self._clock()
        except MirrorError as error:
            problem = error
        return known[1] if known is not None else None, problem

    async def _ask(self, registry: str, key: Hashable, ask: Callable[[], Awaitable[_T]]) -> _T:
        if self._waiting >= _MOST_WAITING:
            raise UpstreamBusy(f"too many others wait for {self._what}: try again")
        self._waiting += 1
        try:
            async with self._requests:
                answer = await ask()
        except UpstreamFailed:
            # It answered, so nobody waits long for it.
            raise
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            log.info("no answer from %s of %s: %s", self._what, registry, error)
            self._failed[registry] = self._clock()
            raise
        finally:
            self._waiting -= 1
        self._failed.pop(registry, None)
        self._kept[key] = self._clock(), answer
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return answer
