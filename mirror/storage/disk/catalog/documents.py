"""Lists that upstream gave, as JSON under a key: a `diskcache`, which evicts the oldest by itself, since upstream can give each of them again."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import diskcache

from mirror.storage.disk.catalog.schema import check_files

log = logging.getLogger(__name__)

FOLDER = "documents"
"""In the catalog's folder."""
_LIMIT = 256 * 1024 * 1024


class Documents:
    """For one thread at a time: diskcache has a connection for each."""

    def __init__(self, folder: Path) -> None:
        """Opens the database, or makes a new one if it cannot be read. Raises OSError, sqlite3.OperationalError."""
        try:
            self._cache = _opened(folder)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("the lists that upstream gave cannot be read (%s): forgotten", error)
            shutil.rmtree(folder)
            self._cache = _opened(folder)
        # This thread's connection would be left open: the catalog's thread opens its own.
        self._cache.close()

    def close(self) -> None:
        self._cache.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns what was stored under a key; None if there is nothing, or it is damaged."""
        try:
            found = self._cache.get(key)
        except (ValueError, zlib.error):
            return None
        return found if isinstance(found, dict) else None

    def set(self, key: str, value: dict[str, Any]) -> None:
        self._cache.set(key, value)


def _opened(folder: Path) -> diskcache.Cache:
    check_files(folder / "cache.db")
    return diskcache.Cache(
        str(folder),
        # Not the default: a pickle on a disk is code.
        disk=diskcache.JSONDisk,
        # All values in the database: their files would be opened whatever they are, be it a FIFO.
        disk_min_file_size=_LIMIT,
        eviction_policy="least-recently-stored",
        size_limit=_LIMIT,
    )
