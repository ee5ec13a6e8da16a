"""What cached images consist of, in tables that are fast to query. They are derived from the catalog and from the manifests, and can be rebuilt at any time.

====  ==========================================================================================================================
item  everything that is cached, or that a cached manifest names, by a short number: size in bytes (NULL while it is not cached); of
      a manifest its platform, its configuration, and when it was fetched (NULL while it has not been read for this)
part  which items a cached manifest has, itself included, all the way down. Of an index: those of its cached manifests
====  ==========================================================================================================================

Triggers (schema.py) keep them in step with what comes and goes; what a manifest says is read from its file once, by `learn`, behind or before the next question.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator

from mirror.errors import DigestInvalid
from mirror.manifests import INDEXES, MAX_SIZE, blobs_of, entries_of, platform_of
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore

log = logging.getLogger(__name__)

_BATCH = 200
"""Manifests that are read in one transaction: few, so that others do not wait long."""


def learn(db: sqlite3.Connection, store: BlobStore) -> int:
    """Reads the manifests that have not been read yet, and returns how many those were. What the disk does not give is left for later. Raises sqlite3.Error."""
    unread = [row[0] for row in db.execute("SELECT digest FROM item WHERE manifest AND fetched IS NULL")]
    for start in range(0, len(unread), _BATCH):
        with db:
            db.execute("BEGIN IMMEDIATE")
            for digest in unread[start : start + _BATCH]:
                try:
                    _learn_one(db, store, Digest.parse(digest))
                except DigestInvalid:
                    continue
                except OSError as error:
                    # The next query tries again. Meanwhile only its name is known.
                    log.warning("manifest %s, or its configuration, cannot be read: %s", digest, error)
    return len(unread)


def _learn_one(db: sqlite3.Connection, store: BlobStore, digest: Digest) -> None:
    """Of a manifest without a file only the name is known, until the repair drops its row."""
    body, fetched = _read(store, digest)
    config, layers = blobs_of(body)
    platform = None
    if config is not None:
        platform = _platform_in_an_index(db, store, digest) or platform_of(_read(store, config.digest)[0])
        # Attestations have this platform.
        platform = None if platform == "unknown/unknown" else platform
    own = db.execute(
        "UPDATE item SET platform = ?, config = ?, fetched = ? WHERE digest = ? RETURNING id",
        (platform, None if config is None else str(config.digest), fetched, str(digest)),
    ).fetchone()[0]
    named = {str(descriptor.digest) for descriptor in (*([config] if config else []), *layers)}
    db.executemany("INSERT OR IGNORE INTO item (digest) VALUES (?)", [(name,) for name in named])
    # Its own, those of the manifests below it that have been read, and the same for every manifest above it.
    db.execute("INSERT OR IGNORE INTO part VALUES (?, ?)", (own, own))
    db.executemany("INSERT OR IGNORE INTO part SELECT ?, id FROM item WHERE digest = ?", [(own, name) for name in named])
    db.execute(
        "INSERT OR IGNORE INTO part SELECT ?1, part.item FROM child JOIN item ON item.digest = child.digest"
        " JOIN part ON part.root = item.id WHERE child.parent = ?2 AND item.manifest AND item.fetched IS NOT NULL",
        (own, str(digest)),
    )
    db.execute(
        "INSERT OR IGNORE INTO part WITH RECURSIVE above (digest) AS (SELECT parent FROM child WHERE digest = ?2"
        " UNION SELECT child.parent FROM above JOIN child USING (digest))"
        " SELECT up.id, part.item FROM above JOIN item AS up USING (digest) JOIN part ON part.root = ?1 WHERE up.fetched IS NOT NULL",
        (own, str(digest)),
    )


def _platform_in_an_index(db: sqlite3.Connection, store: BlobStore, digest: Digest) -> str | None:
    """Returns a manifest's platform from an index, which is there before the configuration is, and has the variant too."""
    parents = db.execute(
        "SELECT parent FROM child JOIN content ON content.digest = parent"
        " WHERE child.digest = ? AND media_type IN (SELECT value FROM json_each(?)) LIMIT 1",
        (str(digest), json.dumps(INDEXES)),
    )
    for (parent,) in parents.fetchall():
        for entry in entries_of(_read(store, Digest.parse(parent))[0]):
            if entry.descriptor.digest == digest:
                return entry.platform
    return None


def _read(store: BlobStore, digest: Digest) -> tuple[bytes, float]:
    """Returns the bytes of a small blob, and when its file was written, in seconds since the epoch; no bytes and the current time if it is not cached."""
    file = store.open(digest)
    if file is None:
        return b"", time.time()
    with contextlib.closing(file):
        return (file.read_all() if file.size <= MAX_SIZE else b""), os.fstat(file.fd).st_mtime


def sizes(db: sqlite3.Connection, roots: str) -> Iterator[tuple[int, int, int, int, str | None]]:
    """(root, bytes, bytes that other images have too, parts that are not cached, platforms) of manifests; `roots` is their numbers as JSON."""
    return db.execute(
        "SELECT root, coalesce(sum(size), 0), coalesce(sum(CASE WHEN EXISTS ("
        "  SELECT 1 FROM part AS other WHERE other.item = part.item AND other.root != part.root AND NOT EXISTS ("
        "   SELECT 1 FROM part AS own WHERE own.root = part.root AND own.item = other.root)) THEN size END), 0),"
        " sum(size IS NULL), group_concat(DISTINCT platform)"
        " FROM part JOIN item ON item.id = part.item WHERE root IN (SELECT value FROM json_each(?)) GROUP BY root",
        (roots,),
    )
