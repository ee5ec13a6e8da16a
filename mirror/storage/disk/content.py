"""Content by digest: files and catalog kept in step.

What is cached under a digest never changes, and upstream is never asked about it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from pathlib import Path

from mirror.downloads.parts import FileReader
from mirror.errors import StorageFull, UpstreamInvalid
from mirror.manifests import MAX_SIZE, Descriptor, Manifest, children_of, media_type_of
from mirror.names import Digest, Repository
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.schema import look_for_damage
from mirror.storage.disk.executor import ThreadPool
from mirror.storage.disk.locks import Rank, hold
from mirror.storage.disk.maintenance import limit
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.disk.maintenance.expiry import Expiry
from mirror.storage.disk.maintenance.scrub import Restore, Scrub
from mirror.storage.disk.spool import sweep
from mirror.storage.settings import Upkeep
from mirror.tasks import BackgroundTask, SingleFlight

log = logging.getLogger(__name__)

_HOT_BYTES = 32 * 1024 * 1024
_TOUCH_INTERVAL = 5.0
_CHECKERS = 2
"""Threads that verify blobs which a client waits for: a core each, while they do."""
_BATCH = 256
"""Rows that are mended in one go: others want the catalog too."""


class Content:
    """All cached blobs and manifests."""

    def __init__(self, root: Path, upkeep: Upkeep) -> None:
        """Opens the cache directory, making it where there is none. Raises OSError, sqlite3.Error."""
        self.store = BlobStore(root)
        self.disk = ThreadPool()
        self.records = CatalogExecutor(root / "catalog")
        self.eviction = Eviction(self.store, self.records, upkeep)
        self._upkeep = upkeep
        self._hot: OrderedDict[Digest, Manifest] = OrderedDict()
        self._hot_bytes = 0
        self._uses: dict[Digest, float] = {}
        self._background_tasks: list[BackgroundTask] = []
        self._checks: SingleFlight[None] = SingleFlight()
        self._checker = ThreadPool(_CHECKERS)
        self._closing = False

    def start(self, restore: Restore) -> None:
        """Begins the chores: mends what a crash left, writes down uses from time to time, lets go what has expired, scrubs."""
        limit.note(self.store.root, self._upkeep.max_size)
        work = [self._recover, self._write_uses, Expiry(self.records, self.eviction, self._upkeep.expire).run]
        if self._upkeep.scrub_rate:
            work.append(Scrub(self.store, self.records, restore, self._upkeep.scrub_rate, self._upkeep.scrub_interval).run)
        self._background_tasks = [BackgroundTask(this) for this in work]
        for background_task in self._background_tasks:
            background_task.start()

    async def aclose(self) -> None:
        for background_task in self._background_tasks:
            await background_task.aclose()
        self._closing = True
        await self._checks.aclose()
        self._checker.close()
        await self._flush()
        await self.records.aclose()
        self.disk.close()

    # ------------------------------------------------------------------ blobs

    async def open(self, digest: Digest, *, verify_first: bool = False) -> FileReader | None:
        """A reader of a cached blob; None where it is not cached. One that is doubted, or was touched since it was verified, is verified anew first."""
        file = self.store.open(digest)
        if file is not None and (verify_first or not file.sealed):
            file.close()
            await self._checks.do(digest, lambda: self._check(digest))
            file = self.store.open(digest)
            if file is not None and not file.sealed:
                # Somebody writes to it just now.
                file.close()
                return None
        if file is None:
            return None
        self._uses[digest] = time.time()
        return FileReader(file)

    async def _check(self, digest: Digest) -> None:
        if not await self._checker.run(self.store.verify, digest, lambda: self._closing):
            await self.records.write(self.records.catalog.forget, [digest])

    async def make_room(self, need: int) -> None:
        """Makes room for `need` bytes. Raises StorageFull."""
        await self._flush()
        await self.eviction.make_room(need)

    async def completed(self, digest: Digest, size: int) -> None:
        """Takes a finished file into the catalog, and sees to the size of the whole."""
        await self.records.write(self.records.catalog.add, digest, size)
        await self.make_room(0)
        await self.eviction.count()

    # ------------------------------------------------------------------ manifests

    def hot_manifest(self, digest: Digest) -> Manifest | None:
        """A manifest that is in memory."""
        manifest = self._hot.get(digest)
        if manifest is not None:
            self._hot.move_to_end(digest)
            self._uses[digest] = time.time()
        return manifest

    async def manifest(self, digest: Digest) -> Manifest | None:
        """A cached manifest; None where it is not cached. Verified anew when it comes from the disk."""
        if (manifest := self.hot_manifest(digest)) is not None:
            return manifest
        media_type = await self.records.read(None, self.records.catalog.manifest_type, digest)
        if media_type is None and not 0 < (self.store.size(digest) or 0) <= MAX_SIZE:
            return None
        body = await self.disk.run(self._read_verified, digest)
        if body is None:
            await self.records.write(self.records.catalog.forget, [digest])
            return None
        if media_type is None:
            # A file without a row, as yet: the catalog was lost.
            try:
                media_type = media_type_of(body, None)
            except UpstreamInvalid:
                return None
        self._uses[digest] = time.time()
        return self._warm(Manifest(media_type, digest, body))

    def cool(self) -> None:
        """Forgets the manifests that are in memory; the files are there, or are not."""
        self._hot.clear()
        self._hot_bytes = 0

    async def naming(self, blob: Digest, since: float) -> list[Digest]:
        """The cached manifests that name a blob and have been used `since`, in seconds since the epoch."""
        nothing: dict[Digest, float] = {}
        parents = await self.records.read(nothing, self.records.catalog.parents, blob)
        return [digest for digest, used in parents.items() if max(used, self._uses.get(digest, 0.0)) >= since]

    async def add_manifest(self, repository: Repository, manifest: Manifest) -> None:
        """Keeps a verified manifest. A disk that will not take it costs only that."""
        self._warm(manifest)
        children = [digest for digests in children_of(manifest.body) for digest in digests]
        try:
            await self.make_room(len(manifest.body))
            await self.disk.run(self.store.put, manifest.digest, manifest.body)
        except (StorageFull, OSError) as error:
            log.warning("cannot keep manifest %s: %s", manifest.digest, error)
            return
        await self.records.write(self.records.catalog.add_manifest, manifest.descriptor, children)
        await self.records.write(self.records.catalog.hold, repository, manifest.digest)
        await self.eviction.count()

    def _warm(self, manifest: Manifest) -> Manifest:
        if manifest.digest not in self._hot:
            self._hot[manifest.digest] = manifest
            self._hot_bytes += len(manifest.body)
            while self._hot_bytes > _HOT_BYTES:
                self._hot_bytes -= len(self._hot.popitem(last=False)[1].body)
        return manifest

    def _read_verified(self, digest: Digest) -> bytes | None:
        file = self.store.open(digest)
        if file is None:
            return None
        with contextlib.closing(file):
            body = file.read_all() if file.size <= MAX_SIZE else b""
        if Digest.of(body, digest.algorithm) == digest:
            return body
        log.error("cached manifest %s is damaged on disk: removed, to be fetched again", digest)
        self.store.remove(digest)
        return None

    # ------------------------------------------------------------------ chores

    async def _write_uses(self) -> None:
        while True:
            await asyncio.sleep(_TOUCH_INTERVAL)
            await self._flush()

    async def _flush(self) -> None:
        if self._uses:
            uses, self._uses = self._uses, {}
            await self.records.write(self.records.catalog.touch, uses)

    async def _recover(self) -> None:
        """After a start, puts in order what a crash left; one process at a time, since a start of many wants it of all at once."""
        await self.eviction.count()
        try:
            with hold(self.store.root / "catalog" / "mend.lock", Rank.MENDING, wait=False):
                await self.disk.run(sweep, self.store)
                await self.disk.run(look_for_damage, self.store.root / "catalog")
                await self.mend()
                await self.make_room(0)
        except BlockingIOError:
            log.debug("another process is mending the catalog")
        except Exception:
            log.exception("could not mend the catalog; serving goes on")
        await self.eviction.count()

    async def mend(self) -> None:
        """Brings files and catalog into step: files without rows are taken in, rows without files dropped. Raises OSError."""
        found = await self.disk.run(lambda: dict(self.store.scan()))
        known = await self.records.read(None, self.records.catalog.content)
        if known is None:
            return
        lost = [digest for digest, size in known.items() if found.get(digest) != size]
        for start in range(0, len(lost), _BATCH):
            await self.records.write(self._drop, self.records.catalog, lost[start : start + _BATCH])
        new = [digest for digest in found if digest not in known]
        for start in range(0, len(new), _BATCH):
            entries = await self.disk.run(self._look_into, new[start : start + _BATCH])
            await self.records.write(self.records.catalog.take_in, entries)
        if lost or new:
            log.info("mended the catalog: %d files taken in, %d rows dropped", len(new), len(lost))

    def _drop(self, catalog: Catalog, digests: list[Digest]) -> None:
        """Drops rows whose file is gone or cut short; not those of files that came since the scan."""
        sizes = catalog.content()
        gone = []
        for digest in digests:
            size = self.store.size(digest)
            if size is not None and size != sizes.get(digest):
                self.store.remove(digest)
                size = None
            if size is None:
                gone.append(digest)
        catalog.forget(gone)

    def _look_into(self, digests: list[Digest]) -> list[tuple[Descriptor, list[Digest]]]:
        """What files without a row are: blobs have no media type here, manifests have children."""
        entries = []
        for digest in digests:
            file = self.store.open(digest)
            if file is None:
                continue
            with contextlib.closing(file):
                body = file.read_all() if file.size <= MAX_SIZE else b""
            media_type, children = "", []
            if body.lstrip()[:1] == b"{":
                with contextlib.suppress(UpstreamInvalid):
                    media_type = media_type_of(body, None)
                    children = [child for digests in children_of(body) for child in digests]
            entries.append((Descriptor(media_type, digest, file.size), children))
        return entries
