"""The images of ``[[warm]]`` lists: which there are, and how their last pulls went. They are pinned while they are listed. Queries that run in the catalog's thread."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping

from mirror.names import Digest, Reference, Repository, Tag, parse_reference
from mirror.storage.store import ListedImage

_SELECT = "SELECT list, registry, path, reference, since, ran, tried, failures, fault FROM listed ORDER BY list, rowid"


class Listed:
    """Each method is a transaction of its own."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def images(self) -> list[ListedImage]:
        """See `Store.listed`."""
        return [
            ListedImage(name, Repository(registry, path), parse_reference(reference), *rest)
            for name, registry, path, reference, *rest in self._db.execute(_SELECT)
        ]

    def replace(self, lists: Mapping[str, Collection[tuple[Repository, Reference]] | None]) -> None:
        """See `Store.set_listed`."""
        now = time.time()
        with self._db:
            self._db.execute("DELETE FROM listed WHERE list NOT IN (SELECT value FROM json_each(?))", (json.dumps(list(lists)),))
            for name, images in lists.items():
                if images is None:
                    continue
                keys = [(repository.registry, repository.path, str(reference)) for repository, reference in images]
                self._db.execute(
                    "DELETE FROM listed WHERE list = ? AND (registry, path, reference) NOT IN"
                    " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?))",
                    (name, json.dumps(keys)),
                )
                self._db.executemany(
                    "INSERT OR IGNORE INTO listed (list, registry, path, reference, digest, since) VALUES (?1, ?2, ?3, ?4,"
                    " coalesce(?5, (SELECT digest FROM tag WHERE registry = ?2 AND path = ?3 AND tag = ?4)), ?6)",
                    [
                        (name, *key, None if isinstance(reference, Tag) else str(reference), now)
                        for key, (_, reference) in zip(keys, images, strict=True)
                    ],
                )

    def note(
        self, name: str, repository: Repository, reference: Reference, tried: float, fault: str, attached: Collection[Digest] = ()
    ) -> None:
        """See `Store.note_listed`."""
        ran, failures = ("ran", "failures + 1") if fault else ("?1", "0")
        key = repository.registry, repository.path, str(reference), name
        with self._db:
            changed = self._db.execute(
                f"UPDATE listed SET tried = ?1, ran = {ran}, failures = {failures}, fault = ?2"  # noqa: S608
                " WHERE list = ?3 AND registry = ?4 AND path = ?5 AND reference = ?6",
                (tried, fault, name, *key[:3]),
            )
            if not changed.rowcount:
                return
            if not fault:
                self._db.execute("DELETE FROM attached WHERE registry = ? AND path = ? AND reference = ? AND list = ?", key)
            self._db.executemany("INSERT OR IGNORE INTO attached VALUES (?, ?, ?, ?, ?)", [(*key, str(one)) for one in attached])
