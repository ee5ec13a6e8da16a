"""What the last month was like, for people: how large the cache was, what clients got each day. Two small tables of the catalog, see catalog.py."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SAMPLE_INTERVAL = 600
"""Seconds between two samples of the size."""
_DAYS = 30


@dataclass(frozen=True, slots=True)
class Day:
    """What clients got on one day (UTC), in bytes."""

    date: str
    requests: int
    hits: int
    fetched: int
    sent: int


@dataclass(frozen=True, slots=True)
class History:
    """Of the last 30 days; days without traffic are there too."""

    sizes: tuple[tuple[int, int], ...]
    """Seconds since the epoch, and bytes that were cached; oldest first."""
    days: tuple[Day, ...]


def sample(db: sqlite3.Connection, now: float) -> None:
    """Notes the size, once for all processes that share the cache, and forgets what is older than a month."""
    moment = int(now) // SAMPLE_INTERVAL * SAMPLE_INTERVAL
    db.execute("INSERT OR REPLACE INTO sample SELECT ?, total(bytes) FROM total WHERE part <= 2", (moment,))
    db.execute("DELETE FROM sample WHERE moment < ?", (moment - _DAYS * 86400,))


def read(db: sqlite3.Connection, now: float) -> History:
    sizes = db.execute("SELECT moment, bytes FROM sample WHERE moment <= ? ORDER BY moment", (now,)).fetchall()
    today = datetime.fromtimestamp(now, UTC).date()
    dates = [str(today - timedelta(days=back)) for back in reversed(range(_DAYS))]
    rows = db.execute(
        "SELECT day, sum(requests), sum(hits), sum(fetched), sum(sent) FROM traffic WHERE day >= ? GROUP BY day", (dates[0],)
    )
    known = {row[0]: Day(*row) for row in rows}
    return History(tuple(sizes), tuple(known.get(date, Day(date, 0, 0, 0, 0)) for date in dates))
