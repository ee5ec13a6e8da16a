"""Keeps the cache within its limit: evicts blobs in the order of policy.py, and manifests only after everything that they name.

Pinned content stays, and so does what somebody is reading, in whatever process (see mirror/locks.py). One process evicts at a time, and in short steps, so that the
catalog serves others meanwhile.

Before content goes what is left of downloads that no process goes on with: it may never become content.

Downloads count with what they have and what they have been granted (see partial.py), not with what upstream claims. What other processes have granted theirs is
not known, but no more than one `step`: that is what counts for a download that was written lately.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from mirror import metrics
from mirror.disk_room import measure
from mirror.errors import DigestInvalid, StorageFull
from mirror.locks import Lock, wait
from mirror.names import Digest
from mirror.storage.disk import spool
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.policy import Queue, evicted, next_victim, spared
from mirror.storage.settings import Upkeep
from mirror.storage.store import Gone
from mirror.units import format_size

log = logging.getLogger(__name__)

_TURN = 0.05
"""Seconds that one step may take."""
_PAUSE = 0.02
"""Seconds between two steps."""
_LARGEST_STEP, _SMALLEST_STEP = 16 * 1024 * 1024, 64 * 1024
"""Bytes for which room is made at once, unless a download has less."""
_UNTOUCHED = 60.0
"""Seconds after which no process writes a download any more."""
_KNOWN = 1.0
"""Seconds for which a measurement of the room counts: other processes and programs take some too."""
_MARGIN = 8
"""Not even then is the last eighth of the cache's limit given away: the catalog is asked."""
_ROOM_UNKNOWN: bool | None = True
"""If the catalog fails, a download is tried: the file system says whether there is room."""


@dataclass
class _Tally:
    """What one call has removed; `size` in bytes. Others may remove content at the same time."""

    count: int = 0
    size: int = 0


@dataclass
class _Pass:
    """The state of one call of `make_room`, over its steps."""

    need: int
    apart: bool
    """What needs the room does not count as the cache's: only the disk must have it."""
    mark: float
    """The cache is to become smaller than this, in bytes."""
    reserved: dict[str, int]
    """Bytes of the downloads that this process leads, by file name."""
    kept: set[Digest] = field(default_factory=set)
    """Pinned content, and content that was found to be in use."""
    passed: dict[Digest, int] = field(default_factory=dict)
    """Blobs that were not evicted for that reason, with sizes in bytes. All are in the main queue now."""
    passed_bytes: int = 0
    spared_spool: int = 0
    """Bytes of downloads that a dry run has left, and that would have gone."""
    unwritten: int = 0
    """Bytes that downloads have been granted and have not written: the file system still counts them as free."""
    disk_decides: bool = False
    """True if the disk has less room left than the cache's limit."""
    room: float = 0.0
    """Bytes for which there was room before anything was evicted."""
    removed: _Tally = field(default_factory=_Tally)


def step(here: int, limit: int) -> int:
    """Returns the bytes for which room is made at once for a download that has `here`: no more is evicted for bytes that may never come."""
    return max(min(here, _LARGEST_STEP, limit // 64), min(_SMALLEST_STEP, limit // 64))


class Eviction:
    """Evicts, and removes what is no longer wanted."""

    def __init__(self, store: BlobStore, catalog: CatalogExecutor, upkeep: Upkeep) -> None:
        self.max_size = upkeep.max_size
        """Bytes that content and downloads in progress may take together."""
        self.reserved: dict[str, int] = {}
        """Bytes of the downloads that this process leads, by file name: see partial.py."""
        self._high = upkeep.high_watermark * upkeep.max_size
        self._low = upkeep.low_watermark * upkeep.max_size
        self._min_free = upkeep.min_free
        self._store = store
        self._catalog = catalog
        self._turn = asyncio.Lock()
        self._room = 0.0
        """Bytes that may be taken without asking the catalog, until `_room_until`."""
        self._room_until = 0.0
        metrics.cache_max_bytes.set(self.max_size)

    def take_room(self, need: int) -> bool:
        """Takes `need` bytes of the room that a second ago was there in plenty. Returns False where the catalog must be asked, by `make_room`."""
        if need > self._room or time.monotonic() >= self._room_until:
            return False
        self._room -= need
        return True

    async def make_room(self, need: int, *, apart: bool = False) -> Gone:
        """Evicts until `need` more bytes fit, both within `max_size` and on the disk; on the disk alone if they are counted `apart`. Returns what this call has
        evicted. Raises StorageFull if they cannot fit.

        Where they would take the cache above its high watermark, evicts down to the low one, as far as that goes.
        """
        if need > self.max_size and not apart:
            raise StorageFull(f"{need} bytes are more than the whole cache may hold ({self.max_size})")
        async with self._turn:
            self._room_until = 0.0
            this = _Pass(need, apart, self._high, dict(self.reserved))
            measured = time.monotonic()
            while (fits := await self._catalog.read(_ROOM_UNKNOWN, self._evict, this)) is None:
                # SQLite's lock is not fair: waiters poll it, and must find it free.
                await asyncio.sleep(_PAUSE)
            if not fits and need:
                where = "on the disk" if this.disk_decides else f"within the {self.max_size} bytes of cache.max_size"
                raise StorageFull(f"there is no room for {need} bytes {where}")
            self._room, self._room_until = this.room - self.max_size // _MARGIN, measured + _KNOWN
        return Gone(this.removed.count, this.removed.size)

    async def could_fit(self, size: int, name: str) -> bool:
        """True where a download of `size` bytes into the spool file `name` could be kept if everything went that may. Evicts nothing."""
        if self.take_room(0) and size <= self._room:
            return True
        others = {other: count for other, count in self.reserved.items() if other != name}
        return await self._catalog.read(True, self._could_fit, size, sum(others.values()))

    async def could_fit_apart(self, size: int) -> bool:
        """True where the disk could take `size` bytes that are counted apart if everything went that may. Evicts nothing."""
        if not size or (self.take_room(0) and size <= self._room):
            return True
        return await self._catalog.read(True, self._could_fit_apart, size)

    async def remove(self, digests: Iterable[Digest]) -> Gone:
        """Removes content that is no longer wanted; what is being read or pinned stays, and manifests of which something stays. Returns what this call has removed."""
        removed = _Tally()
        async with self._turn:
            left = list(digests)
            while left:
                left = await self._catalog.read([], self._remove, left, removed)
        return Gone(removed.count, removed.size)

    def shortage(self, cached: int) -> str:
        """See `Store.shortage`; `cached` is the size of the content in bytes. Blocks."""
        folder = self._store.root
        room = measure(folder, self._min_free)
        if room.free - room.reserve < self.max_size - cached:
            return (
                f"the disk of {folder} has {format_size(room.free)} free, of which cache.min_free leaves {format_size(room.reserve)} to others;"
                " make room on it, or set cache.dir to a larger one"
            )
        return f"they had to make room for others within cache.max_size ({format_size(self.max_size)}); set a larger one, or pull fewer images"

    async def count(self) -> None:
        """Updates the metrics."""
        await self._catalog.read(None, update_metrics)

    def warn_of_the_disk(self) -> None:
        """Logs where the disk is too small for the limit. Blocks."""
        room = measure(self._store.root, self._min_free)
        if self.max_size > room.total - room.reserve:
            log.warning(
                "cache.max_size (%s) is more than the disk of %s can hold: it has %s, of which cache.min_free leaves %s free; the cache stays below that",
                format_size(self.max_size),
                self._store.root,
                format_size(room.total),
                format_size(room.reserve),
            )

    # ------------------------------------------------------------------ in the catalog's thread

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Excludes all others that remove content, in this and other processes. Enter it in the catalog's thread, before its transaction. Blocks."""
        return wait(self._store.root / "catalog" / "eviction.lock", Lock.EVICTION)

    def _evict(self, catalog: Catalog, this: _Pass) -> bool | None:
        """One step: True when there is room, False when there cannot be, None when there may be after more steps."""
        if self._over(catalog, this)[0] <= 0:
            return True
        with self.exclusive(), catalog.changing():
            # Counted again: another process may have made room while this one waited.
            over, must = self._over(catalog, this)
            if over > 0 and (cleared := spool.make_room(self._store, over, dry_run=self._store.dry_run)):
                this.spared_spool += cleared if self._store.dry_run else 0
                over, must = self._over(catalog, this)
            cached, _ = catalog.totals()
            if over <= 0 or must > cached:
                # Not even an empty cache would be enough, so nothing is evicted.
                return must <= 0
            if not this.passed:
                this.kept |= catalog.pinned().keys()
            this.mark = self._low
            over, must = self._over(catalog, this)
            over = max(must, over if over <= cached else 0)
            deadline = time.monotonic() + _TURN
            while over > 0 and (freed := self._evict_one(catalog, this)) is not None:
                over -= freed
                must -= freed
                if time.monotonic() > deadline:
                    break
            else:
                freed = None
            if over > 0 and freed is None:
                for digest, size in catalog.spent_manifests():
                    if over > 0 and digest not in this.kept and self._gone(catalog, digest, size, this.removed):
                        over -= size
                        must -= size
        update_metrics(catalog)
        return None if over > 0 and freed is not None else must <= 0

    def _could_fit(self, catalog: Catalog, size: int, reserved: int) -> bool:
        cached, _ = catalog.totals()
        pinned = sum(catalog.pinned().values())
        return size + reserved + pinned <= self.max_size and (not size or self._short_on_disk(size) <= cached - pinned)

    def _could_fit_apart(self, catalog: Catalog, size: int) -> bool:
        cached, _ = catalog.totals()
        return self._short_on_disk(size) <= cached - sum(catalog.pinned().values())

    def _evict_one(self, catalog: Catalog, this: _Pass) -> int | None:
        """Evicts a blob and returns its bytes; 0 for one that must stay, None if no other blob may be evicted."""
        queues = catalog.queues
        victim = next_victim(queues, self.max_size)
        if victim is not None and victim.queue is Queue.MAIN and this.passed_bytes >= queues.size(Queue.MAIN):
            # All of the main queue was spared, and would be forever.
            victim = queues.oldest(Queue.SMALL)
        if victim is None:
            return None
        try:
            digest = Digest.parse(victim.key)
        except DigestInvalid:
            queues.remove(victim.key)
            return 0
        if digest not in this.kept and self._gone(catalog, digest, victim.size, this.removed):
            evicted(queues, victim, self.max_size)
            return victim.size
        if digest not in this.passed:
            this.kept.add(digest)
            this.passed[digest] = victim.size
            this.passed_bytes += victim.size
        spared(queues, victim)
        return 0

    def _remove(self, catalog: Catalog, digests: list[Digest], removed: _Tally) -> list[Digest]:
        """One step; what is left to be tried, nothing where no more can go."""
        gone: set[Digest] = set()
        with self.exclusive(), catalog.changing():
            pinned, sizes = catalog.pinned(), catalog.content()
            left = [digest for digest in digests if digest in sizes and digest not in pinned]
            deadline = time.monotonic() + _TURN
            for digest in left:
                if time.monotonic() > deadline:
                    break
                if not catalog.names_cached(digest) and self._gone(catalog, digest, sizes[digest], removed):
                    gone.add(digest)
        update_metrics(catalog)
        return [digest for digest in left if digest not in gone] if gone else []

    def _gone(self, catalog: Catalog, digest: Digest, size: int, removed: _Tally) -> bool:
        if not self._store.remove(digest):
            return False
        catalog.drop(digest)
        removed.count += 1
        removed.size += size
        metrics.evictions.inc()
        metrics.evicted_bytes.inc(size)
        return True

    def _over(self, catalog: Catalog, this: _Pass) -> tuple[float, int]:
        """Bytes that must go so that the pass comes below its mark, and so that what it needs fits at all."""
        cached = update_metrics(catalog)
        spooled = sum(this.reserved.values())
        this.unwritten = 0
        with os.scandir(self._store.spool) as entries:
            for entry in entries:
                if not entry.name.endswith(".part"):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    here = written = status.st_blocks * 512
                    if entry.name in this.reserved:
                        here = this.reserved[entry.name]
                    else:
                        if status.st_mtime > time.time() - _UNTOUCHED:
                            # Another process writes it, and has been granted more.
                            here += step(here, self.max_size)
                        here = min(status.st_size, here)
                        spooled += here
                    this.unwritten += max(here - written, 0)
        total = cached + spooled - this.spared_spool + (0 if this.apart else this.need)
        short = self._short_on_disk(this.need, this.unwritten)
        this.room = min(self._high - total, -short)
        this.disk_decides = this.apart or short > total - self.max_size
        must = max(0 if this.apart else total - self.max_size, short if this.need else 0)
        return max(total - this.mark, must), must

    def _short_on_disk(self, need: int, unwritten: int = 0) -> int:
        """Returns the bytes that the file system lacks for `need`, for what downloads have been granted and not written, and for what is to stay free."""
        room = measure(self._store.root, self._min_free)
        return need + unwritten + room.reserve - room.free


def update_metrics(catalog: Catalog) -> int:
    """Updates the metrics of the cache's size, and returns it in bytes."""
    size, blobs = catalog.totals()
    metrics.cache_bytes.set(size)
    metrics.hosted_bytes.set(catalog.hosted.size())
    metrics.cache_blobs.set(blobs)
    return size
