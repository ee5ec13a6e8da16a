"""How many bytes each user, or each address where nobody has logged in, was sent in this calendar month (UTC), for the limits ``bytes_per_month``.

Counted in memory, and added every few seconds to a file that all processes on the cache directory share: a crash, or a power cut, loses what the last `INTERVAL` seconds
have brought, and what one process has sent counts in the others as much later. A count is one of a user and of the repositories of a table, so it goes on when tables
are moved, or name other users.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mirror import metrics
from mirror.access.month_file import FILE, Place, Used, exchange, month_of
from mirror.access.rules import Rule
from mirror.errors import QuotaReached
from mirror.events import NOBODY, Action, Event, Events
from mirror.units import format_size

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two times that counts are written."""
_MOST = 100_000
"""Counts that wait to be written, at most."""


class Months:
    """Counts, and keeps the counts."""

    def __init__(self, folder: Path, events: Events = NOBODY, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._events = events
        self._clock = clock
        self._month, self._ends = month_of(clock())
        """The month, and when it ends, in seconds since the epoch."""
        self._known: dict[Place, int] = {}
        """What was in the file at the last look at it."""
        self._more: dict[tuple[str, str, str], int] = {}
        """What is not yet there, by month, place and key."""
        self._limits: dict[Place, tuple[str, int]] = {}
        """The table that counts what is not yet there, and its limit."""
        self._in_use = False
        self._read_at = float("-inf")
        self._failed = ""

    def take(self, rules: Sequence[Rule]) -> None:
        """Other tables are in force."""
        self._in_use = any(rule.allowance.month is not None for rule in rules)
        self._read_at = float("-inf")

    def check(self, rule: Rule, key: str) -> None:
        """Raises QuotaReached if a user, or an address, was sent what a rule allows in a month."""
        most = rule.allowance.month
        if most is not None and self._used(rule.place, key) >= most:
            raise QuotaReached(
                f"{key} has been sent the {format_size(most)} that [[access]] table {rule.name} allows in a month:"
                f" the next month begins on {_shown(self._ends)}"
            )

    def _used(self, place: str, key: str) -> int:
        """Returns what somebody was sent this month, in bytes, as far as it is known here."""
        if self._clock() >= self._ends:
            self._month, self._ends = month_of(self._clock())
            self._known.clear()
        return self._known.get((place, key), 0) + self._more.get((self._month, place, key), 0)

    def sent(self, rule: Rule, key: str, size: int) -> None:
        """Counts bytes."""
        most = rule.allowance.month
        if most is None or not size:
            return
        self._used(rule.place, key)
        # What an issuer calls somebody may be anything.
        key = key.encode(errors="replace").decode()
        where = self._month, rule.place, key
        if where in self._more or len(self._more) < _MOST:
            self._more[where] = self._more.get(where, 0) + size
            self._limits[rule.place, key] = rule.name, most

    async def sync(self) -> None:
        """Adds what is new to the file, and takes over what others have added, if it is time. Errors are logged: the counts stay in memory until they can be kept."""
        now = time.monotonic()
        if not (self._in_use or self._more) or now - self._read_at < INTERVAL:
            return
        self._read_at = now
        await self._sync()

    async def aclose(self) -> None:
        """Keeps what is new."""
        if self._more:
            await self._sync()

    async def _sync(self) -> None:
        more, month = dict(self._more), self._month
        limits, self._limits = self._limits, {}
        most = {place: limit for place, (_, limit) in limits.items()}
        try:
            known, reached = await asyncio.to_thread(exchange, self._folder, month, more, most)
        except OSError as error:
            text = f"{self._folder / FILE} cannot be used, and the bytes of this month are counted in memory only: {error}"
            if text != self._failed:
                log.error("%s; if the file is damaged, move it away", text, extra={"cause": str(error)})
            self._failed = text
            self._limits = {**limits, **self._limits}
            return
        self._failed = ""
        for where, size in more.items():
            self._more[where] -= size
            if not self._more[where]:
                del self._more[where]
        if month == self._month:
            self._known = known
        metrics.access_month_bytes.set(sum(known.values()))
        for one in reached:
            table, _ = limits[one.place, one.key]
            metrics.access_quotas_reached.labels(table).inc()
            self._tell(one, table)

    def _tell(self, used: Used, table: str) -> None:
        """Tells once that somebody has reached a limit: of all processes, the one that has counted the byte that reached it does."""
        reason = f"{used.key} has been sent {format_size(used.size)} of {used.place} this month, and gets no more until {_shown(self._ends)}"
        log.warning("%s", reason)
        details = {"limit": table, "of": used.key, "reason": reason}
        self._events.send(Event(Action.QUOTA, details=details))


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
