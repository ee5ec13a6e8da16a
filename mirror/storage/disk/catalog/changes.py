"""What other processes have written to the catalog: this one may remember something else."""

from __future__ import annotations

import sqlite3

from mirror.names import Repository, Tag
from mirror.storage.store import Change

_OVERLAP = 5.0
"""Seconds by which two queries overlap: a tag is written some time after its time is taken."""


class Changes:
    """In the catalog's thread."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._version = self._read_version()
        self._deletions = self._read_deletions()
        self._decisions = self._read_decisions()
        (self._latest,) = db.execute("SELECT coalesce(max(checked), 0) FROM tag").fetchone()
        self._seen: set[tuple[str, str, str, float]] = set(self._tags())

    def take(self) -> Change | None:
        """Returns what has changed since the last call, None where nothing has. Costs next to nothing as long as no other connection has written."""
        version = self._read_version()
        if version == self._version:
            return None
        self._version = version
        deletions, decisions, tags = self._read_deletions(), self._read_decisions(), self._tags()
        deleted, ruled = deletions != self._deletions, decisions != self._decisions
        new = [row for row in tags if row not in self._seen]
        self._deletions, self._decisions, self._seen = deletions, decisions, set(tags)
        self._latest = max([self._latest, *(checked for *_, checked in tags)])
        if not deleted and not new and not ruled:
            return None
        return Change(deleted, tuple((Repository(registry, path), Tag(tag)) for registry, path, tag, _ in new), ruled)

    def deleted_here(self) -> None:
        """Notes a deletion of this process."""
        self._deletions += 1

    def checked_here(self, repository: Repository, tag: str, checked: float) -> None:
        """Notes a tag that this process has written."""
        self._seen.add((repository.registry, repository.path, tag, checked))

    def _read_version(self) -> int:
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _read_deletions(self) -> int:
        count: int = self._db.execute("SELECT count FROM removals").fetchone()[0]
        return count

    def _read_decisions(self) -> int:
        count: int = self._db.execute("SELECT count FROM decisions").fetchone()[0]
        return count

    def _tags(self) -> list[tuple[str, str, str, float]]:
        return self._db.execute(
            "SELECT registry, path, tag, checked FROM tag WHERE checked > ?", (self._latest - _OVERLAP,)
        ).fetchall()
