"""Finds the content that is deleted with an image: what no other image has. Queries that run in the catalog's thread."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from mirror.names import Digest, Reference, Repository, Tag

_FAMILY = """
WITH RECURSIVE family (digest) AS (SELECT ? UNION SELECT child.digest FROM family JOIN child ON child.parent = family.digest)
SELECT digest, size FROM family JOIN content USING (digest)
"""
_KEPT = """
WITH RECURSIVE own (digest) AS MATERIALIZED (SELECT value FROM json_each(?1)),
kept (digest) AS (
    SELECT digest FROM own WHERE
        EXISTS (SELECT 1 FROM tag WHERE tag.digest = own.digest)
        OR EXISTS (SELECT 1 FROM pin WHERE pin.digest = own.digest)
        OR EXISTS (SELECT 1 FROM listed WHERE listed.digest = own.digest)
        OR EXISTS (SELECT 1 FROM attached WHERE attached.digest = own.digest)
        OR EXISTS (SELECT 1 FROM hosted WHERE hosted.digest = own.digest)
        OR EXISTS (SELECT 1 FROM holding WHERE holding.digest = own.digest AND (registry != ?2 OR path != ?3))
        OR EXISTS (SELECT 1 FROM child JOIN content ON content.digest = parent WHERE child.digest = own.digest AND parent NOT IN own)
    UNION SELECT child.digest FROM kept JOIN child ON child.parent = kept.digest)
SELECT digest FROM kept
"""


@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for. `tags` are deleted with it: the tag itself, or, for a digest, all tags of the repository that mean it."""

    digest: Digest
    tags: tuple[str, ...]
    pinned: bool
    list: str | None
    """The list that it is in; None if it is in none."""


class Removal:
    """Changes belong to the transaction that is open."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find(self, repository: Repository, reference: Reference) -> Named | None:
        """Returns what a name stands for; None if it is unknown."""
        place = repository.registry, repository.path
        if isinstance(reference, Tag):
            row = self._db.execute(
                "SELECT digest FROM tag WHERE registry = ? AND path = ? AND tag = ?", (*place, reference.value)
            ).fetchone()
            if row is None:
                return None
            digest, tags = Digest.parse(row[0]), [reference.value]
        else:
            digest = reference
            rows = self._db.execute("SELECT tag FROM tag WHERE registry = ? AND path = ? AND digest = ?", (*place, str(digest)))
            tags = [row[0] for row in rows]
            held = "SELECT EXISTS (SELECT 1 FROM holding WHERE registry = ? AND path = ? AND digest = ?)"
            if not tags and not self._db.execute(held, (*place, str(digest))).fetchone()[0]:
                return None
        names = tags if isinstance(reference, Tag) else [*tags, str(digest)]
        (pinned,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM pin WHERE registry = ? AND path = ? AND reference IN (SELECT value FROM json_each(?)))",
            (*place, json.dumps(names)),
        ).fetchone()
        row = self._db.execute(
            "SELECT list FROM listed WHERE registry = ? AND path = ? AND reference IN (SELECT value FROM json_each(?)) LIMIT 1",
            (*place, json.dumps(names)),
        ).fetchone()
        return Named(digest, tuple(tags), bool(pinned), row[0] if row else None)

    def forget_names(self, repository: Repository, reference: Reference, named: Named) -> None:
        """Deletes the names with their pins and pulls, and lets other processes know (see changes.py)."""
        place = repository.registry, repository.path
        names = json.dumps([*named.tags, str(reference)])
        for table, column in (("tag", "tag"), ("pin", "reference"), ("pull", "reference"), ("attached", "reference")):
            self._db.execute(
                f"DELETE FROM {table} WHERE registry = ? AND path = ? AND {column} IN (SELECT value FROM json_each(?))",  # noqa: S608
                (*place, names),
            )
        self._db.execute(
            "UPDATE listed SET digest = NULL WHERE registry = ? AND path = ? AND reference IN (SELECT value FROM json_each(?))",
            (*place, names),
        )
        for table in ("holding", "possession"):
            self._db.execute(f"DELETE FROM {table} WHERE registry = ? AND path = ? AND digest = ?", (*place, str(named.digest)))  # noqa: S608
        self._db.execute(
            "INSERT INTO holding SELECT DISTINCT registry, path, digest FROM tag WHERE registry = ? AND path = ? AND digest = ?",
            (*place, str(named.digest)),
        )
        self._db.execute("UPDATE removals SET count = count + 1")

    def exclusive_content(self, repository: Repository, digest: Digest) -> tuple[dict[str, int], int]:
        """Returns the content of a manifest, whose names in `repository` are deleted already, that no other image has, with sizes in bytes; and the bytes of the rest."""
        family = dict(self._db.execute(_FAMILY, (str(digest),)).fetchall())
        rows = self._db.execute(_KEPT, (json.dumps(list(family)), repository.registry, repository.path))
        kept = {row[0] for row in rows}
        gone = {name: size for name, size in family.items() if name not in kept}
        return gone, sum(family.values()) - sum(gone.values())
