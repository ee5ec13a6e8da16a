"""The catalog, from the event loop: in a thread of its own, and never the reason that a pull fails."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.executor import ThreadPool

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class CatalogExecutor:
    """Runs the catalog's methods one after the other."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, sqlite3.Error where there can be no catalog."""
        self._thread = ThreadPool(1)
        self.catalog = Catalog(folder)

    async def read(self, default: _T, method: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """What a method of the catalog returns; `default` where the database fails."""
        try:
            return await self._thread.run(method, *arguments)
        except (sqlite3.Error, OSError) as error:
            log.warning("the catalog cannot be read: %s", error)
            return default

    async def do(self, method: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """What a method of the catalog returns, for those who must know. Raises sqlite3.Error, OSError."""
        return await self._thread.run(method, *arguments)

    async def write(self, method: Callable[[*_Ts], object], *arguments: *_Ts) -> None:
        """Runs a method of the catalog. What it could not write is mended at the next start, or asked of upstream again."""
        try:
            await self._thread.run(method, *arguments)
        except (sqlite3.Error, OSError) as error:
            log.warning("the catalog cannot be written: %s", error)

    async def aclose(self) -> None:
        """Closes the database, in its own thread."""
        await self._thread.run(self.catalog.close)
        self._thread.close()
