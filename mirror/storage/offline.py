"""What commands read of a cache directory without opening its store: they start in half the time, beside a running mirror or without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mirror.storage.disk.catalog.inventory import Inventory as Inventory
from mirror.storage.disk.maintenance import limit


@contextmanager
def read_inventory(root: Path) -> Iterator[Inventory]:
    """The inventory of a cache directory that is there, which blocks. Raises OSError, sqlite3.Error."""
    with closing(Inventory(root)) as opened:
        yield opened


def noted_limit(root: Path) -> int | None:
    """The size in bytes that the directory's mirror was last started with; None where none has served it yet."""
    return limit.noted(root)
