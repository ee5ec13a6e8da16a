"""Repairs the catalog after a start: a crash, or somebody who deleted files, may have left files without rows and rows without files."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from mirror.errors import UpstreamInvalid
from mirror.locks import attempt
from mirror.manifests import MAX_SIZE, Descriptor, children_of, media_type_of
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.schema import check_for_damage
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.disk.spool import sweep
from mirror.threads import ThreadPool

log = logging.getLogger(__name__)

_BATCH = 256
"""Rows that are repaired in one call, so that others do not wait long for the catalog."""
_PAUSE = 5.0
"""Seconds until a catalog that could not be opened is tried again."""


class Mending:
    """Repairs a cache directory."""

    def __init__(self, blobs: BlobStore, threads: ThreadPool, catalog: CatalogExecutor, eviction: Eviction) -> None:
        self._blobs = blobs
        self._threads = threads
        self._catalog = catalog
        self._eviction = eviction

    async def run(self) -> None:
        """Repairs once. One process at a time does so: several may start together."""
        while await self._catalog.read(None, Catalog.totals) is None:
            await asyncio.sleep(_PAUSE)
        await self._eviction.count()
        folder = self._blobs.root / "catalog"
        try:
            with attempt(folder / "mend.lock"):
                await self._threads.run(sweep, self._blobs)
                # Mirrors up to 0.1 wrote it, but the directory is no OCI image layout: it has no index.json.
                (self._blobs.root / "oci-layout").unlink(missing_ok=True)
                await self._threads.run(check_for_damage, folder)
                await self.mend()
                await self._eviction.make_room(0)
        except BlockingIOError:
            log.debug("another process is mending the catalog")
        except Exception:
            log.exception("could not mend the catalog; serving goes on")
        await self._eviction.count()

    async def mend(self) -> None:
        """Adds rows for files that have none, and deletes rows whose file is gone. Raises OSError."""
        found = await self._threads.run(lambda: dict(self._blobs.scan()))
        known = await self._catalog.read(None, Catalog.content)
        if known is None:
            return
        lost = [digest for digest, size in known.items() if found.get(digest) != size]
        for start in range(0, len(lost), _BATCH):
            await self._catalog.write(self._drop, lost[start : start + _BATCH])
        new = [digest for digest in found if digest not in known]
        for start in range(0, len(new), _BATCH):
            entries = await self._threads.run(self._describe, new[start : start + _BATCH])
            await self._catalog.write(Catalog.take_in, entries)
        if lost or new:
            log.info("mended the catalog: %d files taken in, %d rows dropped", len(new), len(lost))

    def _drop(self, catalog: Catalog, digests: list[Digest]) -> None:
        """Deletes rows whose file is gone or has another size; not those of files written since the scan."""
        sizes = catalog.content()
        for digest in digests:
            # Where it cannot be opened now, or is being read, it stays.
            with contextlib.suppress(OSError):
                if self._blobs.size(digest) not in (None, sizes.get(digest)):
                    self._blobs.remove(digest)
        catalog.forget(digests, self._blobs.is_gone)

    def _describe(self, digests: list[Digest]) -> list[tuple[Descriptor, list[Digest]]]:
        """Returns what files without a row are. Blobs have no media type; manifests have children."""
        entries = []
        for digest in digests:
            try:
                file = self._blobs.open(digest)
                if file is None:
                    continue
                with contextlib.closing(file):
                    body = file.read_all() if file.size <= MAX_SIZE else b""
            except OSError as error:
                log.warning("%s cannot be read, and is not taken into the catalog: %s", digest, error)
                continue
            media_type, children = "", []
            if body.lstrip()[:1] == b"{":
                with contextlib.suppress(UpstreamInvalid):
                    media_type = media_type_of(body, None)
                    children = [child for digests in children_of(body) for child in digests]
            entries.append((Descriptor(media_type, digest, file.size), children))
        return entries
