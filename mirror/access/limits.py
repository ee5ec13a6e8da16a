"""How much each user, or each address where nobody has logged in, may ask for and be sent.

Requests and bytes of a minute are counted by token buckets that hold a minute's worth. How large a body will be is not known when it is asked for, so what was sent is counted
afterwards: whoever has had too much waits until the bucket is above zero again.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from mirror.access.months import Months
from mirror.access.rules import Rule
from mirror.errors import LimitReached

_MOST = 20_000
_MINUTE = 60.0


class Limits:
    """Counts; bounded: whoever has asked for nothing for longest is forgotten first."""

    def __init__(self, months: Months, share: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """`share` is the number of processes that serve side by side: each allows a part. `months` counts the bytes of the month, of all processes together."""
        self._months = months
        self._share = share
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str, str], tuple[float, float]] = OrderedDict()
        """By kind, rule and key: what is left, and when that was."""
        self._active: Counter[tuple[str, str]] = Counter()

    def ask(self, rule: Rule, key: str) -> None:
        """Counts a request of `key`, which is a user or an address. Raises LimitReached, QuotaReached."""
        allowance = rule.allowance
        self._months.check(rule, key)
        if allowance.size is not None:
            most = allowance.size / self._share
            left = self._left("bytes", rule, key, most)
            if left <= 0:
                raise _reached(f"{allowance.size} bytes a minute", rule, key, most, 1.0 - left)
        if allowance.requests is not None:
            most = max(allowance.requests / self._share, 1.0)
            left = self._left("requests", rule, key, most)
            if left < 1.0:
                raise _reached(f"{allowance.requests} requests a minute", rule, key, most, 1.0 - left)
            self._set("requests", rule, key, left - 1.0)

    def sent(self, rule: Rule, key: str, size: int) -> None:
        """Counts bytes of content that were sent."""
        self._months.sent(rule, key, size)
        if rule.allowance.size is not None and size:
            self._set("bytes", rule, key, self._left("bytes", rule, key, rule.allowance.size / self._share) - size)

    def begin(self, rule: Rule, key: str) -> Callable[[], None]:
        """Counts a blob that is about to be sent; the function that is returned is called when it was. Raises LimitReached."""
        most = rule.allowance.downloads
        place = rule.name, key
        if most is not None and self._active[place] >= max(most // self._share, 1):
            raise LimitReached(f"{most} downloads at once are allowed to {key} by [[access]] table {rule.name}", 1.0)
        self._active[place] += 1

        def end() -> None:
            self._active[place] -= 1
            if not self._active[place]:
                del self._active[place]

        return end

    def _left(self, kind: str, rule: Rule, key: str, most: float) -> float:
        now = self._clock()
        left, since = self._buckets.get((kind, rule.name, key), (most, now))
        return min(left + (now - since) * most / _MINUTE, most)

    def _set(self, kind: str, rule: Rule, key: str, left: float) -> None:
        place = kind, rule.name, key
        self._buckets[place] = left, self._clock()
        self._buckets.move_to_end(place)
        if len(self._buckets) > _MOST:
            self._buckets.popitem(last=False)


def _reached(limit: str, rule: Rule, key: str, most: float, missing: float) -> LimitReached:
    wait = missing * _MINUTE / most
    return LimitReached(
        f"{limit} are allowed to {key} by [[access]] table {rule.name}: try again in {wait:.0f} s", max(wait, 1.0)
    )
