"""Slows down whoever guesses passwords or tokens, without locking out whoever knows them.

A wrong one is counted for the address that it came from, and for the user whose it should have been. From the sixth in a minute on, answers to wrong ones are
delayed; the right one is answered at once, however many wrong ones came before it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from mirror.errors import TooManyGuesses

_GUESSES = 5
"""Wrong ones that are answered at once within `_WAIT` seconds; further ones are answered after `DELAY`."""
_WAIT = 60.0
DELAY = 2.0
"""Seconds."""
_MOST_DELAYED = 8
"""Answers for one address or user that are delayed at the same time."""
_MOST_REMEMBERED = 10_000


class Guesses:
    """Counts wrong passwords and tokens; bounded."""

    def __init__(self, locked: Callable[[str], None] = lambda key: None, clock: Callable[[], float] = time.monotonic) -> None:
        """`locked` is called with an address or a user as answers begin to be delayed."""
        self._locked = locked
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._delayed: Counter[str] = Counter()

    async def wrong(self, *keys: str) -> bool:
        """Counts a wrong one, and waits if there were many. `keys` are an address, or an address and a user.

        Returns True if it has waited. Raises TooManyGuesses at once if too many others are waiting.
        """
        counts = {key: self._count(key) for key in keys}
        for key, count in counts.items():
            if count == _GUESSES:
                self._locked(key)
        slow = [key for key, count in counts.items() if count >= _GUESSES]
        if not slow:
            return False
        if any(self._delayed[key] >= _MOST_DELAYED for key in slow):
            raise TooManyGuesses("too many wrong passwords or tokens at the same time", DELAY)
        for key in slow:
            self._delayed[key] += 1
        try:
            await asyncio.sleep(DELAY)
        finally:
            for key in slow:
                self._delayed[key] -= 1
                if not self._delayed[key]:
                    del self._delayed[key]
        return True

    def _count(self, key: str) -> int:
        """Returns how many wrong ones there were before, and adds one."""
        now = self._clock()
        count, since = self._counts.get(key, (0, now))
        if now - since >= _WAIT:
            count, since = 0, now
        self._counts[key] = count + 1, since
        self._counts.move_to_end(key)
        if len(self._counts) > _MOST_REMEMBERED:
            self._counts.popitem(last=False)
        return count
