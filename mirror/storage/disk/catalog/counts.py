"""Counts what clients ask for, and how large the cache is. Queries that run in the catalog's thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

from mirror.events import Action, Event, Events
from mirror.names import Digest, Reference, Repository
from mirror.storage.disk.catalog import history


class Counts:
    """Each method is a transaction of its own."""

    def __init__(self, db: sqlite3.Connection, events: Events) -> None:
        self._db = db
        self._events = events

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
            first = [
                image for image, counts in pulls.items() if self._events.wants(Action.PULL) and self._is_first(*image, *counts)
            ]
        for repository, reference in first:
            self._tell(repository, reference)

    def _is_first(self, repository: Repository, reference: Reference, count: int, last: float) -> bool:
        """Returns whether these are all the pulls of it that there ever were, of all processes."""
        place = repository.registry, repository.path, str(reference)
        found = self._db.execute(
            "SELECT count, last FROM pull WHERE registry = ? AND path = ? AND reference = ?", place
        ).fetchone()
        return bool(found == (count, last))

    def _tell(self, repository: Repository, reference: Reference) -> None:
        """Tells of an image's first pull. What clients ask for by its digest because a tag or an index has named it is no pull of its own."""
        place = repository.registry, repository.path
        if isinstance(reference, Digest):
            named = self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM tag WHERE registry = ?1 AND path = ?2 AND digest = ?3)"
                " OR EXISTS (SELECT 1 FROM child WHERE digest = ?3)",
                (*place, str(reference)),
            ).fetchone()[0]
            if not named:
                self._events.send(Event(Action.PULL, repository, digest=reference))
            return
        row = self._db.execute(
            "SELECT digest, media_type, size FROM tag WHERE registry = ? AND path = ? AND tag = ?", (*place, reference.value)
        ).fetchone()
        if row is not None:
            digest, media_type, size = row
            self._events.send(
                Event(
                    Action.PULL,
                    repository,
                    tag=reference.value,
                    digest=Digest.parse(digest),
                    media_type=media_type,
                    size=size,
                )
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
