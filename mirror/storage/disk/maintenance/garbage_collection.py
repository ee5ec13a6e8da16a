"""`mirror gc`: everything at once that a running mirror does in the background to keep the cache small; or, in a dry run, what that would be.

For a dry run the same code works on a copy of the catalog, and on files that it does not remove.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mirror.locks import try_exclusive
from mirror.names import Digest
from mirror.regular_files import NoFile, open_file
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.disk.maintenance.expiry import Expiry
from mirror.storage.disk.maintenance.hosted_collection import HostedCollection
from mirror.storage.disk.maintenance.mending import Mending
from mirror.storage.disk.spool import sweep
from mirror.storage.disk.uploads import UploadFiles
from mirror.storage.settings import Upkeep
from mirror.storage.store import Collected, Gone
from mirror.threads import ThreadPool

_ORPHANED = 3600.0
"""Seconds without use after which a blob of no image is removed. Before that its manifest may still arrive."""


class GarbageCollection:
    """A mirror may be running on the directory: what that removes at the same time is not counted here."""

    def __init__(
        self,
        blobs: BlobStore,
        threads: ThreadPool,
        catalog: CatalogExecutor,
        eviction: Eviction,
        mending: Mending,
        upkeep: Upkeep,
        offline: Callable[[], bool],
    ) -> None:
        self._blobs = blobs
        self._threads = threads
        self._catalog = catalog
        self._eviction = eviction
        self._mending = mending
        self._upkeep = upkeep
        self._offline = offline

    async def collect(self) -> Collected:
        """Removes what has expired, what belongs to no image, what was given up, and what is above the limit. Raises OSError, CatalogFailed."""
        await self._mending.mend()
        return await self._collect(self._catalog, self._eviction, dry_run=False)

    async def dry_run(self) -> Collected:
        """Returns what `collect` would remove. Raises OSError, CatalogFailed."""
        with tempfile.TemporaryDirectory(prefix="mirror-gc-") as folder:
            await self._catalog.do(Catalog.copy, Path(folder))
            catalog = CatalogExecutor(Path(folder))
            try:
                eviction = Eviction(_Untouched(self._blobs.root), catalog, self._upkeep)
                return await self._collect(catalog, eviction, dry_run=True)
            finally:
                await catalog.aclose()

    async def _collect(self, catalog: CatalogExecutor, eviction: Eviction, dry_run: bool) -> Collected:
        blobs = _Untouched(self._blobs.root) if dry_run else self._blobs
        uploads = UploadFiles(self._blobs.spool)
        hosted = await HostedCollection(blobs, self._threads, catalog, uploads, self._upkeep.hosted).collect(dry_run=dry_run)
        expired = await Expiry(catalog, eviction, self._upkeep.expire, self._offline).expire()
        orphans = await eviction.remove(await catalog.do(Catalog.orphans, time.time() - _ORPHANED))
        unfinished = Gone(*await self._threads.run(lambda: sweep(self._blobs, dry_run=dry_run)))
        return Collected(expired, orphans, unfinished, await eviction.make_room(0), hosted)


class _Untouched(BlobStore):
    """Removes nothing, but returns what `BlobStore` would."""

    dry_run = True

    def remove(self, digest: Digest) -> bool:
        try:
            fd = open_file(self.path(digest), os.O_RDONLY)
        except NoFile:
            return True
        except OSError:
            return False
        try:
            return try_exclusive(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
