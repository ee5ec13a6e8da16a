"""Reads a cache directory without opening its store, which takes a command half the time. A mirror may be running on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mirror.errors import CatalogFailed
from mirror.names import Digest
from mirror.storage.disk.catalog import schema
from mirror.storage.disk.catalog.inventory import Inventory as Inventory
from mirror.storage.disk.maintenance import limit
from mirror.storage.scans import ScanResult, key_of, results_in


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


def read_scan_results(root: Path, digests: Iterable[Digest]) -> dict[Digest, list[ScanResult]]:
    """Returns what scanners found in the images of some manifests; those that none has looked at have an empty list. Raises CatalogFailed, OSError."""
    # Few mirrors have scanners.
    from mirror.storage.disk.catalog.documents import FOLDER, Documents

    folder = root / "catalog" / FOLDER
    if not folder.exists():
        return {digest: [] for digest in digests}
    try:
        with closing(Documents(folder)) as documents:
            return {digest: results_in(documents.get(key_of(digest)) or {}) for digest in digests}
    except sqlite3.Error as error:
        raise CatalogFailed(
            f"what scanners found cannot be read in {folder}: {error}; run this as the user that the mirror runs as"
        ) from error


def blocked_by_hand(root: Path) -> int:
    """Returns how many digests are blocked by hand. Raises CatalogFailed, OSError."""
    with read_inventory(root) as opened:
        return opened.blocked()
