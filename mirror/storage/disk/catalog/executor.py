"""Runs the catalog's methods one after the other, in a thread of their own. No pull fails because the catalog does.

On a disk that is full or read-only there may be no catalog at the start. Opening it is tried again every five seconds; until then every call fails.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from mirror.errors import CatalogFailed
from mirror.events import NOBODY, Events
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.files import FULL, PASSING, fault_in_writing
from mirror.threads import ThreadPool

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM)
_RETRY = 5.0
"""Seconds until opening the catalog is tried again."""


class CatalogExecutor:
    """Call it like ``await executor.read(None, Catalog.tag, repository, tag)``."""

    def __init__(self, folder: Path, events: Events = NOBODY, copy: Path | None = None, bucket: str | None = None) -> None:
        """The arguments are `Catalog`'s. Opens the catalog, or retries later if the disk fails now. Raises CatalogFailed if it cannot be opened for another reason."""
        self._folder = folder
        self._events = events
        self._copy, self._bucket = copy, bucket
        self._catalog: Catalog | None = None
        self._retry = 0.0
        try:
            self._catalog = Catalog(folder, events, copy, bucket)
        except (sqlite3.Error, OSError) as error:
            if not _may_pass(error, folder):
                raise CatalogFailed(
                    f"the catalog in {folder} cannot be used: {error}; run this as the user that the mirror runs as"
                ) from error
            log.error(
                "the catalog in %s cannot be opened (%s): nothing is kept, and tags and pins are not known until it can",
                folder,
                error,
            )
            self._retry = time.monotonic() + _RETRY
        self._thread = ThreadPool(1)

    async def read(self, default: _T, method: Callable[[Catalog, *_Ts], _T], *arguments: *_Ts) -> _T:
        """Returns what a method of the catalog returns; `default` where the database fails."""
        try:
            return await self._thread.run(self._call, method, *arguments)
        except (sqlite3.Error, OSError) as error:
            log.warning("the catalog cannot be read: %s", error)
            return default

    async def do(self, method: Callable[[Catalog, *_Ts], _T], *arguments: *_Ts) -> _T:
        """Returns what a method of the catalog returns. Raises CatalogFailed where the database fails."""
        try:
            return await self._thread.run(self._call, method, *arguments)
        except (sqlite3.Error, OSError) as error:
            full = _primary(error) == sqlite3.SQLITE_FULL or await self._thread.run(fault_in_writing, self._folder) in FULL
            why = "its disk is full: make room, and try again" if full else str(error)
            raise CatalogFailed(f"the cache's catalog in {self._folder} could not be used: {why}") from error

    async def write(self, method: Callable[[Catalog, *_Ts], object], *arguments: *_Ts) -> None:
        """Runs a method of the catalog, which may fail. What it could not write is repaired at the next start, or asked of upstream again."""
        try:
            await self._thread.run(self._call, method, *arguments)
        except (sqlite3.Error, OSError) as error:
            log.warning("the catalog cannot be written: %s", error)

    async def aclose(self) -> None:
        """Closes the database, in its own thread."""
        with contextlib.closing(self._thread):
            if self._catalog is not None:
                await self._thread.run(self._catalog.close)

    def _call(self, method: Callable[[Catalog, *_Ts], _T], *arguments: *_Ts) -> _T:
        if self._catalog is None:
            if time.monotonic() < self._retry:
                raise sqlite3.OperationalError("it could not be opened yet")
            self._retry = time.monotonic() + _RETRY
            self._catalog = Catalog(self._folder, self._events, self._copy, self._bucket)
            log.info("the catalog in %s can be used now", self._folder)
        return method(self._catalog, *arguments)


def _may_pass(error: sqlite3.Error | OSError, folder: Path) -> bool:
    """True where the catalog cannot be opened because of the disk as it is now, and not because of whose it is or what is in it."""
    if isinstance(error, OSError):
        return error.errno in PASSING
    return _primary(error) in _PASSING or fault_in_writing(folder if folder.exists() else folder.parent) in PASSING


def _primary(error: sqlite3.Error | OSError) -> int | None:
    """The primary result code of SQLite (https://www.sqlite.org/rescode.html)."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
