"""Everything that the chores of a running mirror do to the cache's size, at once: for `mirror gc`. Or what they would do, without doing it.

To pretend, the same code works on a copy of the catalog, and on files that it does not remove.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

from mirror import file_locks
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.content import Content
from mirror.storage.disk.files import NoFile, open_file
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.disk.maintenance.expiry import Expiry
from mirror.storage.disk.spool import sweep
from mirror.storage.settings import Upkeep

_ORPHANED = 3600.0
"""Seconds without use after which a blob goes that belongs to no image: its manifest may be on its way."""


@dataclass(frozen=True, slots=True)
class Gone:
    """How much has gone, or would. `size` in bytes."""

    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, by its reason."""

    expired: Gone
    orphans: Gone
    unfinished: Gone
    """Downloads that were given up a week ago."""
    evicted: Gone


class GarbageCollection:
    """Works beside a running mirror or without one."""

    def __init__(self, content: Content, upkeep: Upkeep) -> None:
        self._content = content
        self._upkeep = upkeep

    async def collect(self) -> Collected:
        """Removes what has expired, what belongs to no image, what was given up, and what is too much. Raises OSError, sqlite3.Error."""
        await self._content.mend()
        return await self._collect(self._content.records, self._content.eviction, dry_run=False)

    async def dry_run(self) -> Collected:
        """What `tidy` would remove. Raises OSError, sqlite3.Error."""
        with tempfile.TemporaryDirectory(prefix="mirror-gc-") as folder:
            await self._content.records.do(self._content.records.catalog.copy, Path(folder))
            records = CatalogExecutor(Path(folder))
            try:
                eviction = Eviction(_Untouched(self._content.store.root), records, self._upkeep)
                return await self._collect(records, eviction, dry_run=True)
            finally:
                await records.aclose()

    async def _collect(self, records: CatalogExecutor, eviction: Eviction, dry_run: bool) -> Collected:
        known = await records.do(records.catalog.content)

        async def gone(work: Awaitable[None]) -> Gone:
            nonlocal known
            await work
            before, known = known, await records.do(records.catalog.content)
            sizes = [size for digest, size in before.items() if digest not in known]
            return Gone(len(sizes), sum(sizes))

        expired = await gone(Expiry(records, eviction, self._upkeep.expire).expire())
        orphaned = await records.do(records.catalog.orphans, time.time() - _ORPHANED)
        orphans = await gone(eviction.remove(orphaned))
        unfinished = Gone(*await self._content.disk.run(lambda: sweep(self._content.store, dry_run=dry_run)))
        return Collected(expired, orphans, unfinished, await gone(eviction.make_room(0)))


class _Untouched(BlobStore):
    """Says what it would remove."""

    def remove(self, digest: Digest) -> bool:
        try:
            fd = open_file(self.path(digest), os.O_RDONLY)
        except NoFile:
            return True
        except OSError:
            return False
        try:
            return file_locks.try_exclusive(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
