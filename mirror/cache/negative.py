"""Remembers for a few seconds what upstream said it does not have, so that it is not asked again."""

from __future__ import annotations

from collections import deque

from aiocache import SimpleMemoryCache

from mirror.errors import Unknown
from mirror.names import Reference, Repository
from mirror.tasks import close_all

_MOST = 10_000


class Negative:
    """Remembered 404s."""

    def __init__(self, ttl: float) -> None:
        """`ttl` in seconds; 0 remembers nothing."""
        self._ttl = ttl
        self._known = SimpleMemoryCache(timeout=None)
        self._keys: deque[str] = deque()

    async def check(self, key: str) -> None:
        """Raises the Unknown that is remembered for `key`."""
        if (error := await self._known.get(key)) is not None:
            raise type(error)(error.message)

    async def remember(self, key: str, error: Unknown) -> None:
        if self._ttl <= 0:
            return
        # Many requests for invented names must not fill the memory.
        if len(self._keys) >= _MOST:
            await self._known.delete(self._keys.popleft())
        self._keys.append(key)
        await self._known.set(key, error, ttl=self._ttl)

    async def aclose(self) -> None:
        """Forgets all, and the timers with it."""
        await close_all(self._known.clear, self._known.close)


def key_of(repository: Repository, reference: Reference) -> str:
    """Returns the key of a manifest."""
    return f"manifest {repository} {reference}"
