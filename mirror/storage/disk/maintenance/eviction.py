"""Keeps the cache within its size: blobs go in the order that policy.py gives, manifests only after everything that they name.

What is pinned stays, and what somebody is reading, in whatever process (see store.py). One process evicts at a time, and in short turns, so that the catalog
serves others meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from mirror import metrics
from mirror.errors import DigestInvalid, StorageFull
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.locks import Rank, hold
from mirror.storage.disk.maintenance.policy import Queue, evicted, next_victim, spared
from mirror.storage.settings import Upkeep

_TURN = 0.05
"""Seconds that one turn may take."""
_PAUSE = 0.02
"""Seconds between two turns."""
_ROOM_UNKNOWN: bool | None = True
"""Where the catalog fails, a download is tried: the file system will tell."""
_MOST_SPARE = 64 * 1024 * 1024


@dataclass
class _Pass:
    """One go at making room."""

    need: int
    mark: float
    """Bytes that the cache is to come below."""
    kept: set[Digest] = field(default_factory=set)
    """What is pinned, and what was found to be in use."""
    passed: dict[Digest, int] = field(default_factory=dict)
    """Blobs that would have gone but for that, with sizes in bytes: all of them in the main queue now."""
    passed_bytes: int = 0


class Eviction:
    """Makes room."""

    def __init__(self, store: BlobStore, records: CatalogExecutor, upkeep: Upkeep) -> None:
        self.max_size = upkeep.max_size
        """Bytes that content and spool together may take."""
        self._high = upkeep.high_watermark * upkeep.max_size
        self._low = upkeep.low_watermark * upkeep.max_size
        self._store = store
        self._records = records
        self._turn = asyncio.Lock()
        metrics.cache_max_bytes.set(self.max_size)

    async def make_room(self, need: int) -> None:
        """Evicts until `need` more bytes fit, both within `max_size` and on the disk; raises StorageFull where they cannot.

        Where they would take the cache above its high watermark, down to the low one, as far as that goes.
        """
        if need > self.max_size:
            raise StorageFull(f"{need} bytes are more than the whole cache may hold ({self.max_size})")
        async with self._turn:
            this = _Pass(need, self._high)
            while (fits := await self._records.read(_ROOM_UNKNOWN, self._evict, this)) is None:
                # SQLite's lock is not fair: who waits for it looks every now and then, and must find it free.
                await asyncio.sleep(_PAUSE)
            if not fits and need:
                raise StorageFull(f"there is no room for {need} bytes")

    async def remove(self, digests: Iterable[Digest]) -> None:
        """Removes content that is no longer wanted; what is being read or pinned stays, and manifests of which something stays."""
        async with self._turn:
            left = list(digests)
            while left:
                left = await self._records.read([], self._remove, left)

    async def count(self) -> None:
        """Sets the gauges."""
        await self._records.read(None, self._count)

    def _count(self) -> None:
        size, blobs = self._records.catalog.totals()
        metrics.cache_bytes.set(size)
        metrics.cache_blobs.set(blobs)

    # ------------------------------------------------------------------ in the catalog's thread

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else removes content meanwhile, in whatever process. In the catalog's thread, and before its transaction. Blocks."""
        return hold(self._store.root / "catalog" / "eviction.lock", Rank.EVICTION)

    def _evict(self, this: _Pass) -> bool | None:
        """One turn: True when there is room, False when there cannot be, None when there may be after more turns."""
        catalog = self._records.catalog
        if self._over(this)[0] <= 0:
            return True
        with self.alone(), catalog.changing():
            # Counted again: another process may have made room while this one waited.
            over, must = self._over(this)
            cached, _ = catalog.totals()
            if over <= 0 or must > cached:
                # Where not even an empty cache would do, it need not be emptied.
                return must <= 0
            if not this.passed:
                this.kept |= catalog.pinned().keys()
            this.mark = self._low
            over, must = self._over(this)
            over = max(must, over if over <= cached else 0)
            deadline = time.monotonic() + _TURN
            while over > 0 and (freed := self._evict_one(this)) is not None:
                over -= freed
                must -= freed
                if time.monotonic() > deadline:
                    break
            else:
                freed = None
            if over > 0 and freed is None:
                for digest, size in catalog.spent_manifests():
                    if over > 0 and digest not in this.kept and self._gone(digest, size):
                        over -= size
                        must -= size
        self._count()
        return None if over > 0 and freed is not None else must <= 0

    def _evict_one(self, this: _Pass) -> int | None:
        """The bytes of a blob that is gone now, 0 for one that had to be spared; None where none is left that may go."""
        queues = self._records.catalog.queues
        victim = next_victim(queues, self.max_size)
        if victim is not None and victim.queue is Queue.MAIN and this.passed_bytes >= queues.size(Queue.MAIN):
            # All of the main queue was passed by, and would be for ever.
            victim = queues.oldest(Queue.SMALL)
        if victim is None:
            return None
        try:
            digest = Digest.parse(victim.key)
        except DigestInvalid:
            queues.remove(victim.key)
            return 0
        if digest not in this.kept and self._gone(digest, victim.size):
            evicted(queues, victim, self.max_size)
            return victim.size
        if digest not in this.passed:
            this.kept.add(digest)
            this.passed[digest] = victim.size
            this.passed_bytes += victim.size
        spared(queues, victim)
        return 0

    def _remove(self, digests: list[Digest]) -> list[Digest]:
        """One turn; what is left to be tried, nothing where no more can go."""
        catalog = self._records.catalog
        gone: set[Digest] = set()
        with self.alone(), catalog.changing():
            pinned, sizes = catalog.pinned(), catalog.content()
            left = [digest for digest in digests if digest in sizes and digest not in pinned]
            deadline = time.monotonic() + _TURN
            for digest in left:
                if time.monotonic() > deadline:
                    break
                if not catalog.names_cached(digest) and self._gone(digest, sizes[digest]):
                    gone.add(digest)
        self._count()
        return [digest for digest in left if digest not in gone] if gone else []

    def _gone(self, digest: Digest, size: int) -> bool:
        if not self._store.remove(digest):
            return False
        self._records.catalog.drop(digest)
        metrics.evictions.inc()
        metrics.evicted_bytes.inc(size)
        return True

    def _over(self, this: _Pass) -> tuple[float, int]:
        """Bytes that must go so that the pass comes below its mark, and so that what it needs fits at all."""
        cached, _ = self._records.catalog.totals()
        spooled = 0
        with os.scandir(self._store.spool) as entries:
            for entry in entries:
                if entry.name.endswith(".part"):
                    with contextlib.suppress(FileNotFoundError):
                        # Downloads set their file's full length at their start, which reserves it here.
                        spooled += entry.stat().st_size
        total = cached + spooled + this.need
        must = max(total - self.max_size, self._short_on_disk(this.need))
        return max(total - this.mark, must), must

    def _short_on_disk(self, need: int) -> int:
        """Bytes that the file system lacks for `need`, and something to spare."""
        if not need:
            return 0
        state = os.statvfs(self._store.root)
        spare = min(_MOST_SPARE, state.f_blocks * state.f_frsize // 100)
        return need + spare - state.f_bavail * state.f_frsize
