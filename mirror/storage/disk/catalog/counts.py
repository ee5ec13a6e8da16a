"""Counts what clients ask for, and how large the cache is. Queries that run in the catalog's thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

from mirror.names import Reference, Repository
from mirror.storage.disk.catalog import history


class Counts:
    """Each method is a transaction of its own."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def add_pulls(self, pulls: Mapping[tuple[Repository, Reference], tuple[int, float]]) -> None:
        """Adds to how often clients asked for a manifest, and when last, in seconds since the epoch."""
        with self._db:
            self._db.executemany(
                "INSERT INTO pull VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " count = count + excluded.count, last = max(last, excluded.last)",
                [
                    (repository.registry, repository.path, str(reference), count, last)
                    for (repository, reference), (count, last) in pulls.items()
                ],
            )

    def add_traffic(self, traffic: Mapping[tuple[str, str], Sequence[int]]) -> None:
        """Adds, by registry and type, to today's requests, hits, bytes fetched and bytes sent."""
        with self._db:
            self._db.executemany(
                "INSERT INTO traffic VALUES (date(), ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,"
                " hits = hits + excluded.hits, fetched = fetched + excluded.fetched, sent = sent + excluded.sent",
                [(*key, *counts) for key, counts in traffic.items()],
            )

    def sample(self) -> None:
        """Notes how large the cache is."""
        with self._db:
            history.sample(self._db, time.time())
