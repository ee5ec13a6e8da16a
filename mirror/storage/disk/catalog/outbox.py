"""The queue of what has to be written to a bucket, and deleted from it, as tables of the catalog. Triggers of each connection fill it, in the transaction of what they follow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from mirror.errors import Invalid
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.outbox import Entry

MOST = 100_000
"""Entries that wait at most."""
_MOST_NOTES = {"outbox_wrong": 10_000, "outbox_fetched": MOST}

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL,"
    " UNIQUE (registry, path, reference))",
    "CREATE TABLE IF NOT EXISTS outbox_wrong (digest TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS outbox_fetched (registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL,"
    " PRIMARY KEY (registry, path, reference)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS outbox_state (bucket TEXT NOT NULL, dropped INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS outbox_gone (registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL,"
    " PRIMARY KEY (registry, path, reference)) WITHOUT ROWID",
)
# A newer entry takes the place of an older one with another id: whoever is writing the older one removes only that.
_TRIGGERS = (
    "CREATE TEMP TRIGGER content_to_bucket AFTER INSERT ON main.content BEGIN"
    " DELETE FROM outbox WHERE registry = '' AND path = '' AND reference = new.digest;"
    " INSERT INTO outbox (registry, path, reference) VALUES ('', '', new.digest); END",
    # Of whose it is depends whether it is written.
    "CREATE TEMP TRIGGER holder_to_bucket AFTER INSERT ON main.possession"
    " WHEN EXISTS (SELECT 1 FROM content WHERE digest = new.digest) BEGIN"
    " DELETE FROM outbox WHERE registry = '' AND path = '' AND reference = new.digest;"
    " INSERT INTO outbox (registry, path, reference) VALUES ('', '', new.digest); END",
    "CREATE TEMP TRIGGER tag_to_bucket AFTER INSERT ON main.tag BEGIN"
    " DELETE FROM outbox WHERE registry = new.registry AND path = new.path AND reference = new.tag;"
    " INSERT INTO outbox (registry, path, reference) VALUES (new.registry, new.path, new.tag); END",
    # The rows are counted only where there may be so many.
    f"CREATE TEMP TRIGGER outbox_is_full AFTER INSERT ON main.outbox WHEN new.id - (SELECT min(id) FROM outbox) >= {MOST}"  # noqa: S608
    f" AND (SELECT count(*) FROM outbox) > {MOST} BEGIN UPDATE outbox_state SET dropped = dropped + 1;"
    " DELETE FROM outbox WHERE id = (SELECT min(id) FROM outbox); END",
    # What is deleted of hosted repositories, whoever does it: a push, a command, the rules of retention.
    "CREATE TEMP TRIGGER hosted_is_gone AFTER DELETE ON main.hosted WHEN old.manifest BEGIN"
    " INSERT OR IGNORE INTO outbox_gone VALUES (old.registry, old.path, old.digest); END",
    "CREATE TEMP TRIGGER hosted_is_back AFTER INSERT ON main.hosted BEGIN"
    " DELETE FROM outbox_gone WHERE registry = new.registry AND path = new.path AND reference = new.digest; END",
    "CREATE TEMP TRIGGER tag_is_gone AFTER DELETE ON main.tag"
    " WHEN EXISTS (SELECT 1 FROM hosted WHERE registry = old.registry AND path = old.path) BEGIN"
    " INSERT OR IGNORE INTO outbox_gone VALUES (old.registry, old.path, old.tag); END",
    "CREATE TEMP TRIGGER tag_is_back AFTER INSERT ON main.tag BEGIN"
    " DELETE FROM outbox_gone WHERE registry = new.registry AND path = new.path AND reference = new.tag; END",
)


def follow(db: sqlite3.Connection, bucket: str) -> None:
    """Queues what this connection adds from now on; and all that is here, if this bucket has not been written to. Raises sqlite3.Error."""
    for statement in _SCHEMA:
        db.execute(statement)
    for statement in _TRIGGERS:
        db.execute(statement)
    with db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute("SELECT bucket FROM outbox_state").fetchall() != [(bucket,)]:
            db.execute("DELETE FROM outbox")
            db.execute("DELETE FROM outbox_wrong")
            db.execute("DELETE FROM outbox_fetched")
            db.execute("DELETE FROM outbox_gone")
            db.execute("DELETE FROM outbox_state")
            [(here,)] = db.execute("SELECT (SELECT count(*) FROM content) + (SELECT count(*) FROM tag)")
            db.execute("INSERT INTO outbox_state VALUES (?, ?)", (bucket, max(here - MOST, 0)))
            # What was used last is dropped last, and the tags, which are small, after all content. Not by the trigger, which would count all rows for each.
            db.execute(
                "INSERT INTO outbox (registry, path, reference) SELECT registry, path, reference FROM"
                " (SELECT '' AS registry, '' AS path, digest AS reference, 0 AS part, used AS moment FROM content"
                " UNION ALL SELECT registry, path, tag, 1, checked FROM tag ORDER BY part DESC, moment DESC LIMIT ?)"
                " ORDER BY part, moment",
                (MOST,),
            )


class Outbox:
    """In the catalog's thread."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def take(self, count: int) -> list[Entry]:
        rows = self._db.execute(
            "SELECT id, registry, path, reference, content.digest IS NOT NULL, media_type IS NOT NULL,"
            " EXISTS (SELECT 1 FROM hosted WHERE hosted.digest = reference),"
            " EXISTS (SELECT 1 FROM outbox_wrong AS wrong WHERE wrong.digest = reference),"
            " EXISTS (SELECT 1 FROM outbox_fetched AS own WHERE (own.registry, own.path, own.reference)"
            " = (outbox.registry, outbox.path, outbox.reference))"
            " FROM outbox LEFT JOIN content ON content.digest = reference AND registry = '' ORDER BY id LIMIT ?",
            (count,),
        ).fetchall()
        return list(self._entries(rows))

    def _entries(self, rows: list[tuple[int, str, str, str, int, int, int, int, int]]) -> Iterator[Entry]:
        for number, registry, path, reference, *rest in rows:
            try:
                repository = Repository(registry, path) if registry else None
                found = Digest.parse(reference) if repository is None else Tag.parse(reference)
            except Invalid:
                self.remove(number)
                continue
            yield Entry(number, repository, found, *map(bool, rest))

    def remove(self, number: int) -> None:
        with self._db:
            self._db.execute("DELETE FROM outbox WHERE id = ?", (number,))

    def done(self, entry: Entry) -> None:
        with self._db:
            if not self._db.execute("DELETE FROM outbox WHERE id = ?", (entry.id,)).rowcount:
                # The notes are those of a newer entry, too.
                return
            if entry.is_wrong:
                self._db.execute("DELETE FROM outbox_wrong WHERE digest = ?", (str(entry.reference),))
            if entry.is_fetched:
                self._db.execute(
                    "DELETE FROM outbox_fetched WHERE registry = ? AND path = ? AND reference = ?",
                    _names(entry.repository, entry.reference),
                )

    def put_back(self, entry: Entry) -> None:
        with self._db:
            self._db.execute("UPDATE outbox SET id = (SELECT max(id) + 1 FROM outbox) WHERE id = ?", (entry.id,))

    def gone(self, repository: Repository | None, count: int) -> list[tuple[Repository, Reference]]:
        where, names = (
            ("", ()) if repository is None else ("WHERE registry = ? AND path = ?", (repository.registry, repository.path))
        )
        rows = self._db.execute(f"SELECT registry, path, reference FROM outbox_gone {where} LIMIT ?", (*names, count)).fetchall()  # noqa: S608
        found: list[tuple[Repository, Reference]] = []
        for registry, path, reference in rows:
            try:
                found.append((Repository(registry, path), Digest.parse(reference) if ":" in reference else Tag.parse(reference)))
            except Invalid:
                self._forget_gone(registry, path, reference)
        return found

    def is_gone(self, repository: Repository, reference: Reference) -> bool:
        return bool(
            self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM outbox_gone WHERE registry = ? AND path = ? AND reference = ?)",
                (repository.registry, repository.path, str(reference)),
            ).fetchone()[0]
        )

    def forget_gone(self, repository: Repository, reference: Reference) -> None:
        self._forget_gone(repository.registry, repository.path, str(reference))

    def _forget_gone(self, *names: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM outbox_gone WHERE registry = ? AND path = ? AND reference = ?", names)

    def note_wrong(self, digest: Digest) -> None:
        self._note("outbox_wrong", (str(digest),))

    def note_fetched(self, repository: Repository | None, reference: Reference) -> None:
        self._note("outbox_fetched", _names(repository, reference))

    def _note(self, table: str, names: tuple[str, ...]) -> None:
        with self._db:
            if self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] >= _MOST_NOTES[table]:  # noqa: S608
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
            self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(names))})", names)  # noqa: S608

    def counts(self) -> tuple[int, int]:
        with self._db:
            waiting, dropped = self._db.execute("SELECT (SELECT count(*) FROM outbox), dropped FROM outbox_state").fetchone()
            if dropped:
                self._db.execute("UPDATE outbox_state SET dropped = 0")
        return waiting, dropped


def _names(repository: Repository | None, reference: Reference) -> tuple[str, str, str]:
    """Returns by what an entry is found."""
    return ("", "", str(reference)) if repository is None else (repository.registry, repository.path, str(reference))
