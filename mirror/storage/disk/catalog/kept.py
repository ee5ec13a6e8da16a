"""A second copy of what hosted repositories have: names, links, referrers, in a database of its own, ``hosted/hosted.sqlite``.

Everything else in the catalog can be made anew from files and registries; what was pushed is nowhere else. Each connection's triggers write the copy in the
transaction of what they copy, on the disk before that ends. A catalog that is made anew takes it in.

Rows are deleted from the copy with those of the catalog, and never because the catalog lacks them: it may be an older one that somebody put back.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path

from mirror.storage.disk.files import make_private_folder

log = logging.getLogger(__name__)

FILE = "hosted.sqlite"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS main.copied (since REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS kept.kept_hosted (registry TEXT, path TEXT, digest TEXT, manifest INTEGER, pushed REAL, who TEXT, used REAL,"
    " PRIMARY KEY (registry, path, digest)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kept.kept_tag (registry TEXT, path TEXT, tag TEXT, digest TEXT, media_type TEXT, size INTEGER, checked REAL,"
    " PRIMARY KEY (registry, path, tag)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kept.kept_referrer (registry TEXT, path TEXT, subject TEXT, digest TEXT, described TEXT,"
    " PRIMARY KEY (registry, path, subject, digest)) WITHOUT ROWID",
)
_KEYS = {"hosted": ("digest",), "tag": ("tag",), "referrer": ("subject", "digest")}
"""By table, the columns that tell rows of one repository apart."""
_COLUMNS = {
    "hosted": "registry, path, digest, manifest, pushed, who, used",
    "tag": "registry, path, tag, digest, media_type, size, checked",
    "referrer": "registry, path, subject, digest, described",
}
_OF_HOSTED = "EXISTS (SELECT 1 FROM main.hosted AS own WHERE own.registry = {0}.registry AND own.path = {0}.path)"


def attach(db: sqlite3.Connection, folder: Path, *, alone: bool) -> None:
    """Opens the copy beside a catalog, and takes it into one that has just been made, or makes it. `alone` if no other process has the catalog open. Raises OSError,
    sqlite3.Error."""
    make_private_folder(folder)
    path = folder / FILE
    try:
        _take(db, path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) or not alone or not _is_damaged(db):
            raise
        log.error(
            "%s, the copy of what hosted repositories have, is damaged (%s): set aside, and made anew from the catalog",
            path,
            error,
        )
        with contextlib.suppress(sqlite3.Error):
            db.execute("DETACH kept")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{suffix}").replace(f"{path}{suffix}.unreadable")
        _take(db, path)
    for table, columns in _COLUMNS.items():
        _follow(db, table, [f"new.{column}" for column in columns.split(", ")])


def _take(db: sqlite3.Connection, path: Path) -> None:
    lacks = _open(db, path)
    with db:
        db.execute("BEGIN IMMEDIATE")
        is_new = not db.execute("SELECT EXISTS (SELECT 1 FROM main.copied)").fetchone()[0]
        if is_new:
            _restore(db)
        if is_new or lacks:
            # Half of a change that a power cut has divided was answered to nobody.
            for table, columns in _COLUMNS.items():
                where = "" if table == "hosted" else f" WHERE {_OF_HOSTED.format(table)}"
                db.execute(
                    f"INSERT OR REPLACE INTO kept.kept_{table} SELECT {columns} FROM main.{table}{where}"  # noqa: S608
                    f" EXCEPT SELECT {columns} FROM kept.kept_{table}"
                )


def _is_damaged(db: sqlite3.Connection) -> bool:
    """Returns whether it is the copy that is, and not the catalog."""
    try:
        return bool(db.execute("PRAGMA kept.quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.DatabaseError:
        return True


def _open(db: sqlite3.Connection, path: Path) -> bool:
    """Returns whether it has nothing yet."""
    db.execute("ATTACH ? AS kept", (str(path),))
    db.execute("PRAGMA kept.journal_mode = WAL")
    db.execute("PRAGMA kept.synchronous = FULL")
    for statement in _SCHEMA:
        db.execute(statement)
    # All is read: what is damaged is found while the catalog has the rest.
    return not sum([db.execute(f"SELECT count(*) FROM kept.kept_{table}").fetchone()[0] for table in _COLUMNS])  # noqa: S608


def _restore(db: sqlite3.Connection) -> None:
    """Takes the copy into a new catalog. The time for which content without a name is kept begins again."""
    links = db.execute(
        "INSERT OR IGNORE INTO main.hosted SELECT registry, path, digest, manifest, pushed, who, ? FROM kept.kept_hosted",
        (time.time(),),
    ).rowcount
    for table in ("tag", "referrer"):
        db.execute(f"INSERT OR IGNORE INTO main.{table} SELECT {_COLUMNS[table]} FROM kept.kept_{table}")  # noqa: S608
    db.execute("INSERT OR IGNORE INTO main.holding SELECT registry, path, digest FROM kept.kept_hosted WHERE manifest")
    db.execute("INSERT INTO main.copied VALUES (?)", (time.time(),))
    if links > 0:
        log.warning(
            "the catalog was made anew: what hosted repositories have was restored, %d blobs and manifests with their tags", links
        )


def _follow(db: sqlite3.Connection, table: str, new: list[str]) -> None:
    """Copies what this connection changes from now on."""
    condition = "" if table == "hosted" else f" WHEN {_OF_HOSTED.format('new')}"
    key, own = (
        " AND ".join(f"{column} = {which}.{column}" for column in ("registry", "path", *_KEYS[table])) for which in ("old", "new")
    )
    # Not INSERT OR REPLACE: in a trigger, what the outer statement does about conflicts counts (https://www.sqlite.org/lang_createtrigger.html).
    copies = f"DELETE FROM kept_{table} WHERE {own}; INSERT INTO kept_{table} VALUES ({', '.join(new)})"  # noqa: S608
    # A push that names a link again only touches it, which is not worth a write to the disk.
    changed = " OF manifest, pushed, who" if table == "hosted" else ""
    db.execute(f"CREATE TEMP TRIGGER {table}_added AFTER INSERT ON main.{table}{condition} BEGIN {copies}; END")
    db.execute(f"CREATE TEMP TRIGGER {table}_changed AFTER UPDATE{changed} ON main.{table}{condition} BEGIN {copies}; END")
    db.execute(
        f"CREATE TEMP TRIGGER {table}_deleted AFTER DELETE ON main.{table} BEGIN DELETE FROM kept_{table} WHERE {key}; END"  # noqa: S608
    )
