"""What is known about the content: a SQLite database beside the blobs, shared by all processes on one cache directory.

==========  ====================================================================================================
content     every cached blob and manifest: size in bytes, media type (of manifests only), when it was last used
child       which content a manifest names
tag         what a tag meant when upstream was last asked
holding     which repository has been seen to hold which manifest
pin         which images are never evicted
==========  ====================================================================================================

The files are the truth: a row without its file is dropped and a file without a row taken in at every start, and a database that cannot be read is
set aside and made anew. What upstream said that is only looked up by name, lists of tags and referrers, is in a `diskcache` beside it, as JSON.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache

from mirror.errors import DigestInvalid
from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository, Tag, parse_reference

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS content (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT, used REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS content_used ON content (media_type IS NOT NULL, used);
CREATE TABLE IF NOT EXISTS child (
    parent TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (parent, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tag (
    registry TEXT NOT NULL, path TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, checked REAL NOT NULL,
    PRIMARY KEY (registry, path, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holding (
    registry TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY CHECK (one = 1), bytes INTEGER NOT NULL, blobs INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pin (
    registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL, digest TEXT, since REAL NOT NULL,
    PRIMARY KEY (registry, path, reference)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS tag_pinned AFTER INSERT ON tag BEGIN
    UPDATE pin SET digest = new.digest WHERE registry = new.registry AND path = new.path AND reference = new.tag; END;
INSERT OR IGNORE INTO total SELECT 1, coalesce(sum(size), 0), count(*) FROM content;
CREATE TRIGGER IF NOT EXISTS content_in AFTER INSERT ON content BEGIN
    UPDATE total SET bytes = bytes + new.size, blobs = blobs + 1; END;
CREATE TRIGGER IF NOT EXISTS content_out AFTER DELETE ON content BEGIN
    UPDATE total SET bytes = bytes - old.size, blobs = blobs - 1; END;
"""

_DOCUMENTS_LIMIT = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag meant at `checked`, in seconds since the epoch."""

    descriptor: Descriptor
    checked: float


@dataclass(frozen=True, slots=True)
class Pin:
    """An image that is never evicted. `digest` is what it last meant, None while that is unknown; `since` in seconds since the epoch."""

    repository: Repository
    reference: Reference
    digest: Digest | None
    since: float


class Catalog:
    """Blocking, and for one thread at a time: the cache calls it from a thread of its own."""

    def __init__(self, folder: Path) -> None:
        """Opens the database, or sets an unreadable one aside and makes a new one. Raises OSError, sqlite3.Error."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "content.sqlite"
        try:
            self._db = _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("the catalog cannot be read (%s): set aside, and made anew from the files; pins are lost", error)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").replace(f"{path}{suffix}.unreadable")
            self._db = _connect(path)
        # Only lists that upstream gave, each replaceable: here diskcache may cull by itself. JSON, since a pickle on disk is code.
        self._documents = diskcache.Cache(
            str(folder / "documents"),
            disk=diskcache.JSONDisk,
            eviction_policy="least-recently-stored",
            size_limit=_DOCUMENTS_LIMIT,
        )

    def close(self) -> None:
        self._db.close()
        self._documents.close()

    # ------------------------------------------------------------------ content

    def add(self, digest: Digest, size: int) -> None:
        """Notes a cached blob."""
        with self._db:
            self._add(digest, size, None)

    def add_manifest(self, descriptor: Descriptor, children: Iterable[Digest]) -> None:
        """Notes a cached manifest and what it names."""
        with self._db:
            self._add(descriptor.digest, descriptor.size, descriptor.media_type)
            self._db.executemany(
                "INSERT OR IGNORE INTO child VALUES (?, ?)", [(str(descriptor.digest), str(child)) for child in children]
            )

    def _add(self, digest: Digest, size: int, media_type: str | None) -> None:
        self._db.execute(
            "INSERT INTO content VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET used = excluded.used,"
            " media_type = coalesce(excluded.media_type, media_type)",
            (str(digest), size, media_type, time.time()),
        )

    def manifest_type(self, digest: Digest) -> str | None:
        """The media type of a cached manifest; None where there is none of that digest."""
        row = self._db.execute("SELECT media_type FROM content WHERE digest = ?", (str(digest),)).fetchone()
        return row[0] if row else None

    def forget(self, digests: Iterable[Digest]) -> None:
        """Drops the rows of content that is gone."""
        rows = [(str(digest),) for digest in digests]
        with self._db:
            self._db.executemany("DELETE FROM content WHERE digest = ?", rows)
            self._db.executemany("DELETE FROM child WHERE parent = ?", rows)
            self._db.executemany("DELETE FROM holding WHERE digest = ?", rows)

    def parents(self, digest: Digest) -> dict[Digest, float]:
        """The cached manifests that name something, and when each was last used, in seconds since the epoch."""
        rows = self._db.execute(
            "SELECT parent, used FROM child JOIN content ON content.digest = parent WHERE child.digest = ?", (str(digest),)
        )
        return {Digest.parse(parent): used for parent, used in rows}

    def touch(self, uses: dict[Digest, float]) -> None:
        """Notes when content was last used, in seconds since the epoch."""
        with self._db:
            self._db.executemany(
                "UPDATE content SET used = ? WHERE digest = ?", [(used, str(digest)) for digest, used in uses.items()]
            )

    def totals(self) -> tuple[int, int]:
        """Bytes and number of all cached content."""
        size, blobs = self._db.execute("SELECT bytes, blobs FROM total").fetchone()
        return size, blobs

    def content(self) -> dict[Digest, int]:
        """All there is, with sizes in bytes."""
        return dict(_sized(self._db.execute("SELECT digest, size FROM content")))

    def least_recently_used(self, limit: int) -> list[tuple[Digest, int]]:
        """What may go, the longest unused first: blobs, and after all of them those manifests none of whose content is cached."""
        rows = self._db.execute(
            "SELECT digest, size FROM content WHERE media_type IS NULL ORDER BY media_type IS NOT NULL, used LIMIT ?", (limit,)
        ).fetchall()
        if not rows:
            rows = self._db.execute(
                "SELECT digest, size FROM content AS parent WHERE media_type IS NOT NULL AND NOT EXISTS ("
                " SELECT 1 FROM child JOIN content ON content.digest = child.digest WHERE child.parent = parent.digest)"
                " ORDER BY used LIMIT ?",
                (limit,),
            ).fetchall()
        return list(_sized(rows))

    # ------------------------------------------------------------------ names

    def tag(self, repository: Repository, tag: str) -> TagRecord | None:
        """What a tag meant when last asked; None where it never was."""
        row = self._db.execute(
            "SELECT media_type, digest, size, checked FROM tag WHERE registry = ? AND path = ? AND tag = ?",
            (repository.registry, repository.path, tag),
        ).fetchone()
        return TagRecord(Descriptor(row[0], Digest.parse(row[1]), row[2]), row[3]) if row else None

    def set_tag(self, repository: Repository, tag: str, record: TagRecord) -> None:
        found = record.descriptor
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?, ?, ?, ?)",
                (repository.registry, repository.path, tag, str(found.digest), found.media_type, found.size, record.checked),
            )

    def drop_tag(self, repository: Repository, tag: str) -> None:
        with self._db:
            self._db.execute(
                "DELETE FROM tag WHERE registry = ? AND path = ? AND tag = ?", (repository.registry, repository.path, tag)
            )

    def hold(self, repository: Repository, digest: Digest) -> None:
        """Notes that a repository holds a manifest."""
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO holding VALUES (?, ?, ?)", (repository.registry, repository.path, str(digest))
            )

    def tags(self, repository: Repository) -> list[str]:
        """The tags of a repository that have been asked for."""
        rows = self._db.execute("SELECT tag FROM tag WHERE registry = ? AND path = ?", (repository.registry, repository.path))
        return [row[0] for row in rows]

    def repositories(self) -> list[tuple[str, str]]:
        """(registry, path) of every repository with a cached manifest."""
        return self._db.execute(
            "SELECT DISTINCT registry, path FROM holding JOIN content USING (digest)"
            " UNION SELECT DISTINCT registry, path FROM tag JOIN content USING (digest)"
        ).fetchall()

    # ------------------------------------------------------------------ pins

    def pin(self, repository: Repository, reference: Reference) -> None:
        """Keeps an image from eviction: what a tag means at any time, or a digest. It need not be cached, or known, yet.

        A tag that upstream has dropped keeps what it meant last.
        """
        names = repository.registry, repository.path, str(reference)
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO pin VALUES (?1, ?2, ?3,"
                " coalesce(?4, (SELECT digest FROM tag WHERE registry = ?1 AND path = ?2 AND tag = ?3)), ?5)",
                (*names, None if isinstance(reference, Tag) else str(reference), time.time()),
            )

    def unpin(self, repository: Repository, reference: Reference) -> bool:
        """Gives an image back to eviction. False where it was not pinned by that very reference."""
        with self._db:
            found = self._db.execute(
                "DELETE FROM pin WHERE registry = ? AND path = ? AND reference = ?",
                (repository.registry, repository.path, str(reference)),
            )
        return found.rowcount > 0

    def pins(self) -> list[Pin]:
        """All pins, by name."""
        rows = self._db.execute("SELECT registry, path, reference, digest, since FROM pin ORDER BY registry, path, reference")
        return [
            Pin(Repository(registry, path), parse_reference(reference), Digest.parse(digest) if digest else None, since)
            for registry, path, reference, digest, since in rows
        ]

    def pinned(self) -> dict[Digest, int]:
        """Everything cached that belongs to a pinned image, with sizes in bytes: manifest or index, what they name, and so on down."""
        return dict(
            _sized(
                self._db.execute(
                    "WITH RECURSIVE kept (digest) AS (SELECT digest FROM pin WHERE digest IS NOT NULL"
                    " UNION SELECT child.digest FROM kept JOIN child ON child.parent = kept.digest)"
                    " SELECT digest, size FROM kept JOIN content USING (digest)"
                )
            )
        )

    # ------------------------------------------------------------------ documents

    def document(self, key: str) -> dict[str, Any] | None:
        """What was stored under `key`: a list that upstream gave, and when."""
        found = self._documents.get(key)
        return found if isinstance(found, dict) else None

    def set_document(self, key: str, value: dict[str, Any]) -> None:
        self._documents.set(key, value)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last rows, never the database: files without rows are taken in at the start.
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
        db.execute("SELECT count(*) FROM total").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _sized(rows: Iterable[tuple[str, int]]) -> Iterator[tuple[Digest, int]]:
    for digest, size in rows:
        with contextlib.suppress(DigestInvalid):
            yield Digest.parse(digest), size
