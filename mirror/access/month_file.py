"""The file of what everybody was sent this month: SQLite, which all processes on the cache directory share."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mirror.regular_files import open_file

FILE = "months"
"""In the folder of the access part."""
_MOST = 100_000
"""Counts that are kept of a month; those of the most bytes."""
_PATIENCE = 2.0
"""Seconds to wait for another process that writes."""
_SCHEMA = "CREATE TABLE IF NOT EXISTS used (month TEXT, place TEXT, key TEXT, size INTEGER, most INTEGER, PRIMARY KEY (month, place, key)) WITHOUT ROWID"
_ADD = "INSERT INTO used VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET size = size + excluded.size, most = excluded.most"
_FEWER = "DELETE FROM used WHERE month = ?1 AND (place, key) IN (SELECT place, key FROM used WHERE month = ?1 ORDER BY size DESC LIMIT -1 OFFSET ?2)"

Place = tuple[str, str]
"""The repositories of a table, and whose bytes are counted."""


@dataclass(frozen=True, slots=True)
class Used:
    """What somebody was sent in a month, in bytes, and the most that was allowed when it was last counted."""

    place: str
    """The repositories of the table, as it names them."""
    key: str
    """A user, or an address."""
    size: int
    most: int


def month_of(moment: float) -> tuple[str, float]:
    """Returns the calendar month (UTC) of a time in seconds since the epoch, such as ``2026-11``, and when it ends."""
    now = datetime.fromtimestamp(moment, UTC)
    following = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return f"{now.year:04}-{now.month:02}", following.timestamp()


def read_used(folder: Path, moment: float) -> list[Used]:
    """Returns what everybody was sent in the month of a time, those who were sent most first. Blocks. Raises OSError."""
    if not os.path.lexists(folder / FILE):
        return []
    try:
        with contextlib.closing(_opened(folder)) as database:
            rows = database.execute(
                "SELECT place, key, size, most FROM used WHERE month = ? ORDER BY size DESC, place, key", (month_of(moment)[0],)
            )
            return [Used(*row) for row in rows]
    except sqlite3.Error as error:
        raise OSError(f"{folder / FILE} cannot be read: {error}") from None


def exchange(
    folder: Path, month: str, more: Mapping[tuple[str, str, str], int], most: Mapping[Place, int]
) -> tuple[dict[Place, int], list[Used]]:
    """Adds to the file; returns what is in it for a month, and whose limits that has reached. Blocks. Raises OSError."""
    try:
        return _exchange(folder, month, more, most)
    except sqlite3.Error as error:
        raise OSError(str(error)) from None


def _exchange(
    folder: Path, month: str, more: Mapping[tuple[str, str, str], int], most: Mapping[Place, int]
) -> tuple[dict[Place, int], list[Used]]:
    reached = []
    with contextlib.closing(_opened(folder)) as database:
        # One transaction: of all processes, one sees a count pass a limit.
        database.execute("BEGIN IMMEDIATE")
        for (when, place, key), size in more.items():
            allowed = most.get((place, key), 0)
            database.execute(_ADD, (when, place, key, size, allowed))
            ((total,),) = database.execute(
                "SELECT size FROM used WHERE month = ? AND place = ? AND key = ?", (when, place, key)
            ).fetchall()
            if total - size < allowed <= total and when == month:
                reached.append(Used(place, key, total, allowed))
        database.execute("DELETE FROM used WHERE month < ?", (month,))
        database.execute(_FEWER, (month, _MOST))
        rows = database.execute("SELECT place, key, size FROM used WHERE month = ?", (month,)).fetchall()
        database.execute("COMMIT")
    return {(place, key): size for place, key, size in rows}, reached


def _opened(folder: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error, OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Refuses what is no regular file, and makes one that only its owner can read.
    os.close(open_file(folder / FILE, os.O_RDWR | os.O_CREAT))
    database = sqlite3.connect(folder / FILE, timeout=_PATIENCE, isolation_level=None)
    try:
        database.execute(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
