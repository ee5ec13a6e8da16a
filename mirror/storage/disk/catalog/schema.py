"""The tables of the catalog, and opening its database."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from pathlib import Path

from mirror.locks import Lock, opening
from mirror.regular_files import open_file, status_of
from mirror.storage.disk.catalog.kept import attach

log = logging.getLogger(__name__)

FILE = "content.sqlite"
_DAMAGED = "content.damaged"
"""A file that marks the database as damaged: the next start makes a new one."""

MANIFESTS = 2
"""The `queue` of manifests, which are evicted after everything that they name. 0 and 1 are the policy's queues. In `total`, 3 and 4 are the ghosts of these, and 5 holds the bytes by which the small queue has adapted."""
HOSTED = 6
"""The `queue` of everything that a hosted repository has: it is never evicted, and counted apart."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS content (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT, used REAL NOT NULL,
    queue INTEGER NOT NULL DEFAULT 0, entered INTEGER NOT NULL DEFAULT 0, frequency INTEGER NOT NULL DEFAULT 0,
    verified REAL NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS content_queue ON content (queue, entered);
CREATE INDEX IF NOT EXISTS content_verified ON content (verified);
CREATE TABLE IF NOT EXISTS ghost (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, entered INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ghost_entered ON ghost (entered);
CREATE TABLE IF NOT EXISTS main_ghost (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, entered INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS main_ghost_entered ON main_ghost (entered);
CREATE TABLE IF NOT EXISTS child (
    parent TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (parent, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tag (
    registry TEXT NOT NULL, path TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, checked REAL NOT NULL,
    PRIMARY KEY (registry, path, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    registry TEXT NOT NULL, path TEXT NOT NULL, tag TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (registry, path, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sighting (
    id INTEGER PRIMARY KEY, registry TEXT NOT NULL, path TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    endpoint TEXT NOT NULL, served REAL, gone REAL, released REAL, released_by TEXT, reason TEXT);
INSERT INTO sighting (registry, path, tag, digest, media_type, size, first, last, endpoint, served)
    SELECT registry, path, tag, digest, media_type, size, checked, checked, '', checked FROM tag
    WHERE NOT EXISTS (SELECT 1 FROM sighting);
CREATE INDEX IF NOT EXISTS sighting_tag ON sighting (registry, path, tag, id);
CREATE TABLE IF NOT EXISTS blocked (
    digest TEXT PRIMARY KEY, reason TEXT NOT NULL, blocked_by TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ruling (
    rule TEXT NOT NULL, verdict TEXT NOT NULL, registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL,
    count INTEGER NOT NULL, last REAL NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (rule, verdict, registry, path, reference)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ruling_last ON ruling (last);
CREATE TABLE IF NOT EXISTS decisions (count INTEGER NOT NULL);
INSERT INTO decisions SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM decisions);
CREATE TABLE IF NOT EXISTS holding (
    registry TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holding_digest ON holding (digest);
CREATE TABLE IF NOT EXISTS possession (
    digest TEXT NOT NULL, registry TEXT NOT NULL, path TEXT NOT NULL, told INTEGER NOT NULL, PRIMARY KEY (digest, registry, path)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS removals (count INTEGER NOT NULL);
INSERT INTO removals SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM removals);
CREATE TABLE IF NOT EXISTS pin (
    registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL, digest TEXT, since REAL NOT NULL,
    PRIMARY KEY (registry, path, reference)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS tag_pinned AFTER INSERT ON tag BEGIN
    UPDATE pin SET digest = new.digest WHERE registry = new.registry AND path = new.path AND reference = new.tag; END;
CREATE TABLE IF NOT EXISTS listed (
    list TEXT NOT NULL, registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL, digest TEXT, since REAL NOT NULL,
    ran REAL, tried REAL, failures INTEGER NOT NULL DEFAULT 0, fault TEXT NOT NULL DEFAULT '',
    UNIQUE (list, registry, path, reference));
CREATE INDEX IF NOT EXISTS listed_reference ON listed (registry, path, reference);
CREATE TRIGGER IF NOT EXISTS tag_listed AFTER INSERT ON tag BEGIN
    UPDATE listed SET digest = new.digest WHERE registry = new.registry AND path = new.path AND reference = new.tag; END;
CREATE TABLE IF NOT EXISTS attached (
    registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL, list TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (registry, path, reference, list, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attached_digest ON attached (digest);
CREATE TRIGGER IF NOT EXISTS listed_out AFTER DELETE ON listed BEGIN
    DELETE FROM attached WHERE registry = old.registry AND path = old.path AND reference = old.reference AND list = old.list; END;
CREATE TABLE IF NOT EXISTS total (part INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, entries INTEGER NOT NULL);
INSERT INTO total
    SELECT column1, (SELECT coalesce(sum(size), 0) FROM content WHERE queue = column1), (SELECT count(*) FROM content WHERE queue = column1)
    FROM (VALUES (0), (1), (2)) WHERE column1 NOT IN (SELECT part FROM total)
    UNION ALL SELECT column1, (SELECT coalesce(sum(size), 0) FROM ghost), (SELECT count(*) FROM ghost)
    FROM (VALUES (3)) WHERE column1 NOT IN (SELECT part FROM total)
    UNION ALL SELECT column1, (SELECT coalesce(sum(size), 0) FROM main_ghost), (SELECT count(*) FROM main_ghost)
    FROM (VALUES (4)) WHERE column1 NOT IN (SELECT part FROM total)
    UNION ALL SELECT 5, 0, 0 WHERE 5 NOT IN (SELECT part FROM total)
    UNION ALL SELECT 6, 0, 0 WHERE 6 NOT IN (SELECT part FROM total);
CREATE TRIGGER IF NOT EXISTS content_in AFTER INSERT ON content BEGIN
    UPDATE total SET bytes = bytes + new.size, entries = entries + 1 WHERE part = new.queue; END;
CREATE TRIGGER IF NOT EXISTS content_out AFTER DELETE ON content BEGIN
    UPDATE total SET bytes = bytes - old.size, entries = entries - 1 WHERE part = old.queue; END;
CREATE TRIGGER IF NOT EXISTS content_moved AFTER UPDATE OF queue ON content WHEN old.queue != new.queue BEGIN
    UPDATE total SET bytes = bytes - old.size, entries = entries - 1 WHERE part = old.queue;
    UPDATE total SET bytes = bytes + new.size, entries = entries + 1 WHERE part = new.queue; END;
CREATE TRIGGER IF NOT EXISTS ghost_in AFTER INSERT ON ghost BEGIN
    UPDATE total SET bytes = bytes + new.size, entries = entries + 1 WHERE part = 3; END;
CREATE TRIGGER IF NOT EXISTS ghost_out AFTER DELETE ON ghost BEGIN
    UPDATE total SET bytes = bytes - old.size, entries = entries - 1 WHERE part = 3; END;
CREATE TRIGGER IF NOT EXISTS main_ghost_in AFTER INSERT ON main_ghost BEGIN
    UPDATE total SET bytes = bytes + new.size, entries = entries + 1 WHERE part = 4; END;
CREATE TRIGGER IF NOT EXISTS main_ghost_out AFTER DELETE ON main_ghost BEGIN
    UPDATE total SET bytes = bytes - old.size, entries = entries - 1 WHERE part = 4; END;
CREATE TABLE IF NOT EXISTS hosted (
    registry TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, manifest INTEGER NOT NULL,
    pushed REAL NOT NULL, who TEXT NOT NULL, used REAL NOT NULL, PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS hosted_digest ON hosted (digest);
CREATE TABLE IF NOT EXISTS referrer (
    registry TEXT NOT NULL, path TEXT NOT NULL, subject TEXT NOT NULL, digest TEXT NOT NULL, described TEXT NOT NULL,
    PRIMARY KEY (registry, path, subject, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS referrer_digest ON referrer (digest);
CREATE TABLE IF NOT EXISTS pull (
    registry TEXT NOT NULL, path TEXT NOT NULL, reference TEXT NOT NULL, count INTEGER NOT NULL, last REAL NOT NULL,
    PRIMARY KEY (registry, path, reference)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS traffic (
    day TEXT NOT NULL, registry TEXT NOT NULL, type TEXT NOT NULL,
    requests INTEGER NOT NULL, hits INTEGER NOT NULL, fetched INTEGER NOT NULL, sent INTEGER NOT NULL,
    PRIMARY KEY (day, registry, type)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sample (moment INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS item (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER, manifest INTEGER NOT NULL DEFAULT 0,
    platform TEXT, config TEXT, fetched REAL);
CREATE INDEX IF NOT EXISTS item_unread ON item (id) WHERE manifest AND fetched IS NULL;
CREATE INDEX IF NOT EXISTS item_config ON item (config) WHERE platform IS NULL;
CREATE TABLE IF NOT EXISTS part (root INTEGER NOT NULL, item INTEGER NOT NULL, PRIMARY KEY (root, item)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS part_item ON part (item);
CREATE INDEX IF NOT EXISTS child_digest ON child (digest);
CREATE INDEX IF NOT EXISTS tag_digest ON tag (digest);
CREATE INDEX IF NOT EXISTS tag_checked ON tag (checked);
INSERT INTO item (digest, size, manifest)
    SELECT digest, size, media_type IS NOT NULL FROM content WHERE NOT EXISTS (SELECT 1 FROM item LIMIT 1);
DELETE FROM item WHERE size IS NULL AND NOT EXISTS (SELECT 1 FROM part WHERE part.item = item.id);
CREATE TRIGGER IF NOT EXISTS item_in AFTER INSERT ON content BEGIN
    INSERT INTO item (digest, size, manifest) VALUES (new.digest, new.size, new.media_type IS NOT NULL)
        ON CONFLICT (digest) DO UPDATE SET size = excluded.size, manifest = excluded.manifest;
    UPDATE item SET fetched = NULL WHERE config = new.digest AND platform IS NULL; END;
CREATE TRIGGER IF NOT EXISTS item_typed AFTER UPDATE OF media_type ON content
    WHEN old.media_type IS NULL AND new.media_type IS NOT NULL BEGIN
    UPDATE item SET manifest = 1, fetched = NULL WHERE digest = new.digest; END;
CREATE TRIGGER IF NOT EXISTS item_out AFTER DELETE ON content BEGIN
    UPDATE item SET size = NULL WHERE digest = old.digest; END;
CREATE TRIGGER IF NOT EXISTS manifest_out AFTER DELETE ON content WHEN old.media_type IS NOT NULL BEGIN
    UPDATE item SET fetched = NULL WHERE id IN (
        SELECT root FROM part WHERE item = (SELECT id FROM item WHERE digest = old.digest));
    DELETE FROM part WHERE root IN (SELECT root FROM part WHERE item = (SELECT id FROM item WHERE digest = old.digest));
    UPDATE item SET manifest = 0, platform = NULL, config = NULL WHERE digest = old.digest; END;
"""

# Migrates a catalog of the time when eviction was LRU: the order of use becomes the order of the small queue.
_FROM_LRU = (
    "DROP TABLE total",
    "DROP TRIGGER content_in",
    "DROP TRIGGER content_out",
    "DROP INDEX content_used",
    "ALTER TABLE content ADD COLUMN queue INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE content ADD COLUMN entered INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE content ADD COLUMN frequency INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE content ADD COLUMN verified REAL NOT NULL DEFAULT 0",
    "UPDATE content SET entered = used * 1000, queue = CASE WHEN media_type IS NULL THEN 0 ELSE 2 END",
)

# A catalog of the time when a repository had whatever its manifests name.
_FROM_NAMES = """
INSERT INTO possession WITH RECURSIVE had (registry, path, digest) AS (SELECT registry, path, digest FROM holding WHERE NOT EXISTS (
        SELECT 1 FROM hosted WHERE (hosted.registry, hosted.path, hosted.digest) = (holding.registry, holding.path, holding.digest))
    UNION SELECT registry, path, child.digest FROM had JOIN child ON child.parent = had.digest)
SELECT digest, registry, path, 1 FROM had JOIN content USING (digest)
"""


def open_database(folder: Path, copy: Path | None) -> tuple[sqlite3.Connection, int]:
    """Opens the database. An unreadable one is set aside and a new one made, unless another process has it open. `copy` is the folder of kept.py; None for none.

    Gives a descriptor too, by which others know that it is open: to be closed after it. Raises OSError, sqlite3.Error.
    """
    path = folder / FILE
    lock = open_file(folder / "open.lock", os.O_RDWR | os.O_CREAT)
    try:
        with opening(lock, Lock.DATABASE) as exclusive:
            if exclusive and status_of(folder / _DAMAGED) is not None:
                _set_aside(path, "its last start found damage in it")
                (folder / _DAMAGED).unlink()
            try:
                db = connect(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) or not exclusive:
                    raise
                _set_aside(path, error)
                db = connect(path)
            if copy is not None:
                try:
                    attach(db, copy, alone=exclusive)
                except BaseException:
                    db.close()
                    raise
    except BaseException:
        os.close(lock)
        raise
    return db, lock


def check_files(path: Path) -> None:
    """Raises sqlite3.OperationalError if something else than a file has the name of a database, or of a file that SQLite has beside it, and would wait for it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        # What is not there, or cannot be looked at, is SQLite's to find out.
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.stat(f"{path}{suffix}", follow_symlinks=False).st_mode):
                raise sqlite3.OperationalError(f"{path}{suffix} is no regular file")


def check_for_damage(folder: Path) -> None:
    """Reads the whole database, and marks it for the next start if it is damaged. Blocks. Raises OSError."""
    try:
        with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
            [found] = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        log.error("the catalog is damaged (%s): it is made anew from the files at the next start", found)
        (folder / _DAMAGED).touch()


def _set_aside(path: Path, why: object) -> None:
    log.warning(
        "the catalog cannot be read (%s): set aside, and made anew from the files; pins are lost",
        why,
    )
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{path}{suffix}.unreadable")


def connect(path: Path) -> sqlite3.Connection:
    """Opens the database and creates missing tables. Raises sqlite3.Error."""
    check_files(path)
    db = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last rows, but not the database. Files without rows are added at the next start.
        db.execute("PRAGMA synchronous = NORMAL")
        with db:
            db.execute("BEGIN IMMEDIATE")
            columns = {row[1] for row in db.execute("PRAGMA table_info(content)")}
            if columns and "queue" not in columns:
                for statement in _FROM_LRU:
                    db.execute(statement)
            from_names = bool(columns) and not db.execute("PRAGMA table_info(possession)").fetchall()
        db.executescript(_SCHEMA)
        if from_names:
            with db:
                db.execute(_FROM_NAMES)
        db.execute("SELECT count(*) FROM total").fetchone()
    except BaseException:
        db.close()
        raise
    return db
