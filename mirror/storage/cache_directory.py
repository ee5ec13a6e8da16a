"""Reads a cache directory without opening its store, which takes a command half the time. A mirror may be running on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mirror.errors import CatalogFailed
from mirror.storage.disk.catalog import schema
from mirror.storage.disk.catalog.inventory import Inventory as Inventory
from mirror.storage.disk.maintenance import limit


def holds_cache(root: Path) -> bool:
    """Returns whether a directory is a cache directory. Raises OSError."""
    return (root / "catalog" / schema.FILE).exists()


@contextmanager
def read_inventory(root: Path) -> Iterator[Inventory]:
    """Opens the inventory of an existing cache directory, whose methods block. Raises CatalogFailed, also from the inventory's methods; OSError."""
    try:
        with closing(Inventory(root)) as opened:
            yield opened
    except sqlite3.Error as error:
        raise CatalogFailed(
            f"the catalog in {root}/catalog cannot be used: {error}; run this as the user that the mirror runs as"
        ) from error


def noted_limit(root: Path) -> int | None:
    """Returns the limit in bytes that the directory's mirror was last started with; None if there is none yet."""
    return limit.noted(root)
