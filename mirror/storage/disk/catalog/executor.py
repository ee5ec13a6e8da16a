"""Runs the catalog's methods one after the other, in a thread of their own; a catalog that fails is never the reason that a pull does.

On a full disk there may be no catalog at the start: it is tried again from time to time, and until then every call fails as with a broken one.
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
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.files import is_full
from mirror.threads import ThreadPool

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_RETRY = 5.0
"""Seconds until opening the catalog is tried again."""


class CatalogExecutor:
    """Calls look like ``await executor.read(None, Catalog.tag, repository, tag)``."""

    def __init__(self, folder: Path) -> None:
        """Opens the catalog, which may wait on a full disk. Raises OSError, sqlite3.Error where there can be no catalog for another reason."""
        self._folder = folder
        self._catalog: Catalog | None = None
        self._retry = 0.0
        try:
            self._catalog = Catalog(folder)
        except (sqlite3.Error, OSError) as error:
            if not is_full(folder if folder.exists() else folder.parent):
                raise
            log.error(
                "the disk of %s is full: nothing is kept, and tags and pins are not known until there is room (%s)", folder, error
            )
            self._retry = time.monotonic() + _RETRY
        self._thread = ThreadPool(1)

    async def read(self, default: _T, method: Callable[[Catalog, *_Ts], _T], *arguments: *_Ts) -> _T:
        """What a method of the catalog returns; `default` where the database fails."""
        try:
            return await self._thread.run(self._call, method, *arguments)
        except (sqlite3.Error, OSError) as error:
            log.warning("the catalog cannot be read: %s", error)
            return default

    async def do(self, method: Callable[[Catalog, *_Ts], _T], *arguments: *_Ts) -> _T:
        """What a method of the catalog returns, for those who must know. Raises CatalogFailed."""
        try:
            return await self._thread.run(self._call, method, *arguments)
        except (sqlite3.Error, OSError) as error:
            full = await self._thread.run(is_full, self._folder)
            why = "its disk is full: make room, and try again" if full else str(error)
            raise CatalogFailed(f"the cache's catalog in {self._folder} could not be used: {why}") from error

    async def write(self, method: Callable[[Catalog, *_Ts], object], *arguments: *_Ts) -> None:
        """Runs a method of the catalog. What it could not write is mended at the next start, or asked of upstream again."""
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
                raise sqlite3.OperationalError("it could not be opened: the disk was full")
            self._retry = time.monotonic() + _RETRY
            self._catalog = Catalog(self._folder)
            log.info("the catalog in %s can be used now", self._folder)
        return method(self._catalog, *arguments)
