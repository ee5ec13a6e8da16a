"""The queues of the eviction policy (policy.py), as columns of the catalog: shared by all processes, and there again after a restart."""

from __future__ import annotations

import sqlite3

from mirror.storage.disk.maintenance.policy import Entry, Queue

_GHOSTS = {Queue.SMALL: "ghost", Queue.MAIN: "main_ghost"}
_GHOST_PARTS = {Queue.SMALL: 3, Queue.MAIN: 4}
"""In `total.part`, beside the queues themselves."""
_ADAPTATION = 5
"""In `total.part`: by how many bytes the small queue has adapted."""


class BlobQueues:
    """Queues of digests, as text. Changes belong to whatever transaction is open."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def size(self, queue: Queue) -> int:
        return self._number("SELECT bytes FROM total WHERE part = ?", int(queue))

    def oldest(self, queue: Queue) -> Entry[str] | None:
        row = self._db.execute(
            "SELECT digest, size, frequency FROM content WHERE queue = ? ORDER BY entered LIMIT 1", (int(queue),)
        ).fetchone()
        return Entry(row[0], row[1], queue, row[2]) if row else None

    def to_main(self, key: str, frequency: int) -> None:
        self._db.execute(
            "UPDATE content SET queue = ?1, frequency = ?2, entered = ?3 WHERE digest = ?4",
            (int(Queue.MAIN), frequency, self.young_end(Queue.MAIN), key),
        )

    def young_end(self, queue: int) -> int:
        """The place behind all that are in a queue."""
        return self._number("SELECT coalesce(max(entered), 0) + 1 FROM content WHERE queue = ?", int(queue))

    def remove(self, key: str) -> None:
        """Removes an entry that is no content: a row with a name that is no digest."""
        self._db.execute("DELETE FROM content WHERE digest = ?", (key,))

    def add_ghost(self, key: str, size: int, queue: Queue) -> None:
        table = _GHOSTS[queue]
        self._db.execute(f"INSERT OR IGNORE INTO {table} SELECT ?, ?, coalesce(max(entered), 0) + 1 FROM {table}", (key, size))  # noqa: S608

    def take_ghost(self, key: str) -> Queue | None:
        found = [
            queue
            for queue, table in _GHOSTS.items()
            if self._db.execute(f"DELETE FROM {table} WHERE digest = ?", (key,)).rowcount  # noqa: S608
        ]
        return found[0] if found else None

    def ghost_size(self, queue: Queue) -> int:
        return self._number("SELECT bytes FROM total WHERE part = ?", _GHOST_PARTS[queue])

    def drop_oldest_ghost(self, queue: Queue) -> None:
        table = _GHOSTS[queue]
        self._db.execute(f"DELETE FROM {table} WHERE entered = (SELECT min(entered) FROM {table})")  # noqa: S608

    def adaptation(self) -> int:
        return self._number("SELECT bytes FROM total WHERE part = ?", _ADAPTATION)

    def adapt(self, size: int) -> None:
        self._db.execute("UPDATE total SET bytes = ? WHERE part = ?", (size, _ADAPTATION))

    def _number(self, query: str, *values: int) -> int:
        number: int = self._db.execute(query, values).fetchone()[0]
        return number
