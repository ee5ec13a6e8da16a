"""Which repository has which content, as far as that is known. Queries that run in the catalog's thread.

A manifest proves nothing about what it names: whoever made it may name any digest, at least as that of a layer that registries do not have. So a row of
``possession`` is there for what a registry has given, or has said that it has (`told`), and for what an archive brought.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from mirror.names import Digest, Repository

_HOLDERS = """
SELECT registry, path FROM possession WHERE digest = ?1 UNION SELECT registry, path FROM holding WHERE digest = ?1
UNION SELECT registry, path FROM tag WHERE digest = ?1 UNION SELECT registry, path FROM hosted WHERE digest = ?1
"""
_IS_NAMED = """
SELECT EXISTS (SELECT 1 FROM child JOIN holding ON holding.digest = child.parent
    WHERE child.digest = ? AND holding.registry = ? AND holding.path = ?)
"""


class Possessions:
    """`add` belongs to the transaction that is open."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def add(self, repository: Repository, digest: Digest, *, told: bool) -> None:
        """Notes that a repository has content."""
        self._db.execute(
            "INSERT INTO possession VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET told = 1 WHERE excluded.told AND NOT told",
            (str(digest), repository.registry, repository.path, told),
        )

    def hold(self, repository: Repository, manifest: Digest, told: bool) -> None:
        """Notes that a repository holds a manifest, as its registry has `told`, or an archive. A transaction of its own."""
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO holding VALUES (?, ?, ?)", (repository.registry, repository.path, str(manifest))
            )
            self.add(repository, manifest, told=told)

    def note(self, repository: Repository, digests: Iterable[Digest], told: bool) -> None:
        """See `Store.note_holder`. A transaction of its own."""
        with self._db:
            for digest in digests:
                self.add(repository, digest, told=told)

    def holders(self, digest: Digest) -> frozenset[Repository]:
        """See `Store.holders`."""
        return frozenset(Repository(*row) for row in self._db.execute(_HOLDERS, (str(digest),)))

    def told_holders(self, digest: Digest) -> frozenset[Repository]:
        """See `Store.told_holders`."""
        rows = self._db.execute("SELECT registry, path FROM possession WHERE digest = ? AND told", (str(digest),))
        return frozenset(Repository(*row) for row in rows)

    def is_named(self, repository: Repository, digest: Digest) -> bool:
        """See `Store.is_named`."""
        return bool(self._db.execute(_IS_NAMED, (str(digest), repository.registry, repository.path)).fetchone()[0])
