"""The last month's history: the size of the cache, and the traffic of each day. Two small tables of the catalog, see catalog.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from mirror.names import Reference, Repository
from mirror.storage.inventory import Day, History

SAMPLE_INTERVAL = 600
"""Seconds between two samples of the size."""
_DAYS = 30
TRAFFIC = (
    "coalesce(sum(requests), 0), coalesce(sum(hits), 0), coalesce(sum(CASE WHEN type IN ('blob', 'manifest') THEN fetched END), 0),"
    " coalesce(sum(sent), 0), coalesce(sum(CASE type WHEN 'prefetch' THEN fetched END), 0), coalesce(sum(CASE type WHEN 'pull' THEN fetched END), 0)"
)
"""Requests, hits, and bytes fetched, sent, prefetched and pulled, as SQL sums over the table ``traffic`` (see usage.py for its types)."""


def sample(db: sqlite3.Connection, now: float) -> None:
    """Records the size, once for all processes that share the cache, and deletes records older than a month."""
    moment = int(now) // SAMPLE_INTERVAL * SAMPLE_INTERVAL
    db.execute("INSERT OR REPLACE INTO sample SELECT ?, total(bytes) FROM total WHERE part <= 2", (moment,))
    db.execute("DELETE FROM sample WHERE moment < ?", (moment - _DAYS * 86400,))


def count_pulls(db: sqlite3.Connection, pulls: Mapping[tuple[Repository, Reference], tuple[int, float]]) -> None:
    """Adds to how often clients asked for a manifest, and when last, in seconds since the epoch."""
    db.executemany(
        "INSERT INTO pull VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " count = count + excluded.count, last = max(last, excluded.last)",
        [
            (repository.registry, repository.path, str(reference), count, last)
            for (repository, reference), (count, last) in pulls.items()
        ],
    )


def count_traffic(db: sqlite3.Connection, traffic: Mapping[tuple[str, str], Sequence[int]]) -> None:
    """Adds, by registry and type, to today's requests, hits, bytes fetched and bytes sent."""
    db.executemany(
        "INSERT INTO traffic VALUES (date(), ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,"
        " hits = hits + excluded.hits, fetched = fetched + excluded.fetched, sent = sent + excluded.sent",
        [(*key, *counts) for key, counts in traffic.items()],
    )


def read(db: sqlite3.Connection, now: float) -> History:
    sizes = db.execute("SELECT moment, bytes FROM sample WHERE moment <= ? ORDER BY moment", (now,)).fetchall()
    today = datetime.fromtimestamp(now, UTC).date()
    dates = [str(today - timedelta(days=back)) for back in reversed(range(_DAYS))]
    rows = db.execute(
        f"SELECT day, {TRAFFIC} FROM traffic WHERE day >= ? GROUP BY day",  # noqa: S608
        (dates[0],),
    )
    known = {date: Day(*counts, date=date) for date, *counts in rows}
    return History(tuple(sizes), tuple(known.get(date, Day(0, 0, 0, 0, date=date)) for date in dates))
