"""Judges a download that another process leads: whether its size counts for the readers here, and whether it makes progress. Does no I/O; times are in seconds."""

from __future__ import annotations

from mirror.downloads.planner import LEAST_PROGRESS, Window
from mirror.downloads.suppliers import Supplier
from mirror.storage.partial import Partial

_NAMED_WITHIN = 0.5
"""Seconds within which a process that has taken the lead names the repository that it downloads from."""
SLOW_AFTER = 20.0
"""Seconds in which the leader must bring `LEAST_PROGRESS` bytes where it downloads from another repository."""
STOPPED_AFTER = 60.0
"""Seconds in which the leader must bring something, wherever it downloads from: it may be a stopped process."""


class Following:
    """One download that another process leads, seen by a process whose readers asked another repository, or the same."""

    def __init__(self, spool: Partial, first: Supplier, now: float) -> None:
        """`first` is the repository that this process would download from."""
        self._spool = spool
        self._first = first
        self._began = now
        self._slow = Window(now, spool.have.total)
        self._stopped = Window(now, spool.have.total)

    @property
    def same_repository(self) -> bool:
        """True where the leader downloads from the same repository: what it says counts for the readers here."""
        return self._spool.leader == self._first.repository

    def must_ask(self, now: float) -> bool:
        """True where this process must ask its own repository for the size."""
        named = self._spool.leader is not None or now - self._began >= _NAMED_WITHIN
        return named and not self.same_repository and not self._first.answered.is_set()

    @property
    def may_be_read(self) -> bool:
        """True where the size is known, and the own repository has said what it has to say about that."""
        return self._spool.size is not None and (self.same_repository or self._first.answered.is_set())

    @property
    def disputed(self) -> bool:
        """True where the own repository says another size."""
        return self._first.promised and None not in (self._first.size, self._spool.size) and self._first.size != self._spool.size

    def is_held_up(self, now: float, capped: bool) -> bool:
        """True at the end of a period in which the leader has brought too little. If downloads are `capped`, little is enough: a second one would be no faster."""
        total = self._spool.have.total
        gained = self._slow.gained(now, total, SLOW_AFTER)
        if self._stopped.gained(now, total, STOPPED_AFTER) == 0:
            return True
        slow = gained is not None and gained < LEAST_PROGRESS
        return slow and not capped and not self.same_repository and total != self._spool.size
