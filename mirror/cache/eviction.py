"""Keeps the cache within its size: the least recently used blobs go first, manifests only after everything that they name.

What is pinned stays, and what somebody is reading, in whatever process (see blobs.py). One process evicts at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator

from mirror import metrics
from mirror.cache.blobs import BlobStore
from mirror.cache.records import Records
from mirror.errors import StorageFull
from mirror.names import Digest

_BATCH = 64
_MOST_SPARE = 64 * 1024 * 1024


class Eviction:
    """Makes room."""

    def __init__(self, store: BlobStore, records: Records, max_size: int) -> None:
        self.max_size = max_size
        """Bytes that content and spool together may take."""
        self._store = store
        self._records = records
        self._turn = asyncio.Lock()
        metrics.cache_max_bytes.set(max_size)

    async def make_room(self, need: int) -> None:
        """Evicts until `need` more bytes fit, both within `max_size` and on the disk. Raises StorageFull where they cannot."""
        if need > self.max_size:
            raise StorageFull(f"{need} bytes are more than the whole cache may hold ({self.max_size})")
        async with self._turn:
            if not await self._records.read(True, self._evict, need) and need:
                raise StorageFull(f"there is no room for {need} bytes")

    async def count(self) -> None:
        """Sets the gauges."""
        await self._records.read(None, self._count)

    def _count(self) -> None:
        size, blobs = self._records.catalog.totals()
        metrics.cache_bytes.set(size)
        metrics.cache_blobs.set(blobs)

    def _evict(self, need: int) -> bool:
        """True when there is room. In the catalog's thread."""
        catalog = self._records.catalog
        cached, _ = catalog.totals()
        over = self._missing(cached, need)
        if over <= 0:
            return True
        if over > cached:
            # Not even an empty cache would do: then it need not be emptied.
            return False
        with self._alone():
            kept = set(catalog.pinned())
            while over > 0 and (batch := self._candidates(kept)):
                for digest, size in batch:
                    if over <= 0:
                        break
                    if not self._store.remove(digest):
                        kept.add(digest)
                        continue
                    catalog.forget([digest])
                    over -= size
                    metrics.evictions.inc()
                    metrics.evicted_bytes.inc(size)
        self._count()
        return over <= 0

    def _missing(self, cached: int, need: int) -> int:
        """Bytes that must go so that `need` more fit."""
        state = os.statvfs(self._store.root)
        spare = min(_MOST_SPARE, state.f_blocks * state.f_frsize // 100)
        free = state.f_bavail * state.f_frsize
        spooled = 0
        with os.scandir(self._store.spool) as entries:
            for entry in entries:
                if entry.name.endswith(".part"):
                    with contextlib.suppress(FileNotFoundError):
                        # Downloads set their file's full length at their start, which reserves it here.
                        spooled += entry.stat().st_size
        return max(cached + spooled + need - self.max_size, need + spare - free if need else 0)

    def _candidates(self, kept: set[Digest]) -> list[tuple[Digest, int]]:
        """What may go next; without `kept`, which is pinned or which somebody is reading."""
        rows = self._records.catalog.least_recently_used(_BATCH + len(kept))
        return [row for row in rows if row[0] not in kept]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self._store.root / "catalog" / "eviction.lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
