"""Content by digest: files and catalog kept in step.

What is cached under a digest never changes, and upstream is never asked about it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping

from mirror.errors import StorageFull, StorageUnreadable, UpstreamInvalid
from mirror.manifests import (
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    MAX_SIZE,
    Descriptor,
    Manifest,
    children_of,
    media_type_of,
    payload_of,
)
from mirror.names import Digest, Repository
from mirror.storage.disk.blobs import ROTTEN, BlobFile, BlobStore, FileReader
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.eviction import Eviction, update_metrics
from mirror.storage.disk.partial import DiskPartial, Reservations
from mirror.tasks import SingleFlight, close_all
from mirror.threads import ThreadPool

log = logging.getLogger(__name__)

_HOT_BYTES = 32 * 1024 * 1024
_CHECKERS = 2
"""Threads that verify blobs for waiting clients; each uses a core meanwhile."""
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR)
"""Errors that may be over in a moment."""
_TRIES = 5
_PAUSE = 0.05
"""Seconds between two tries to open a file for want of descriptors."""


class Content:
    """All cached blobs and manifests."""

    def __init__(self, blobs: BlobStore, threads: ThreadPool, catalog: CatalogExecutor, eviction: Eviction) -> None:
        self._blobs = blobs
        self._threads = threads
        self._catalog = catalog
        self._eviction = eviction
        self._reservations = Reservations(eviction.max_size, eviction.reserved, self.make_room, eviction.could_fit)
        self._hot: OrderedDict[Digest, Manifest] = OrderedDict()
        self._hot_bytes = 0
        self._uses: dict[Digest, float] = {}
        self._checks: SingleFlight[None] = SingleFlight()
        self._checker = ThreadPool(_CHECKERS)
        self._closing = False

    async def aclose(self) -> None:
        self._closing = True
        await close_all(self._checks.aclose, self._close_checker, self.flush)

    async def _close_checker(self) -> None:
        self._checker.close()

    # ------------------------------------------------------------------ blobs

    async def open(self, digest: Digest) -> FileReader | None:
        """See `Store.open`. A file that is there and sealed is opened in place, on the event loop: a hop to a thread costs more than the open."""
        file = await self._open(digest)
        if file is not None and not file.sealed:
            file.close()
            await self._check_once(digest)
            file = await self._open(digest)
            if file is not None and not file.sealed:
                # Somebody is writing to it.
                file.close()
                return None
        if file is None:
            return None
        self._uses[digest] = time.time()
        return FileReader(file)

    async def _open(self, digest: Digest) -> BlobFile | None:
        for left in reversed(range(_TRIES)):
            try:
                return self._blobs.open(digest)
            except OSError as error:
                if error.errno not in _SCARCE or not left:
                    raise StorageUnreadable(f"the cache's disk cannot read {digest}: {error.strerror}") from error
                await asyncio.sleep(_PAUSE)
        raise AssertionError

    def size(self, digest: Digest) -> int | None:
        """See `Store.size`."""
        try:
            return self._blobs.size(digest)
        except OSError as error:
            raise StorageUnreadable(f"the cache's disk cannot read {digest}: {error.strerror}") from error

    def verify_behind(self, digest: Digest) -> None:
        """See `Store.verify_behind`."""
        if not self._closing:
            self._checks.start(digest, lambda: self._check(digest))

    async def _check_once(self, digest: Digest) -> None:
        try:
            await self._checks.do(digest, lambda: self._check(digest))
        except OSError as error:
            raise StorageUnreadable(f"the cache's disk cannot read {digest}: {error.strerror}") from error

    async def _check(self, digest: Digest) -> None:
        if not await self._checker.run(self._blobs.verify, digest, lambda: self._closing):
            await self._catalog.write(Catalog.forget, [digest], self._blobs.is_gone)

    def partial(self, digest: Digest, claimed: int | None) -> DiskPartial:
        """See `Store.partial`."""
        return DiskPartial(self._blobs, digest, self._threads, self._reservations, self.committed, claimed)

    async def committed(self, digest: Digest, size: int) -> None:
        """Adds a finished blob to the catalog, and evicts if the cache is too large now."""
        await self._catalog.write(_add, digest, size)
        await self.make_room(0)

    async def make_room(self, need: int) -> None:
        """Makes room for `need` bytes. Raises StorageFull."""
        if not self._eviction.take_room(need):
            await self.flush()
            await self._eviction.make_room(need)

    # ------------------------------------------------------------------ manifests

    def hot_manifest(self, digest: Digest) -> Manifest | None:
        """See `Store.hot_manifest`."""
        manifest = self._hot.get(digest)
        if manifest is not None:
            self._hot.move_to_end(digest)
            self._uses[digest] = time.time()
        return manifest

    async def manifest(self, digest: Digest) -> Manifest | None:
        """See `Store.manifest`."""
        if (manifest := self.hot_manifest(digest)) is not None:
            return manifest
        try:
            media_type = await self._catalog.read(None, Catalog.manifest_type, digest)
            if media_type is None and not 0 < (self.size(digest) or 0) <= MAX_SIZE:
                return None
            file = await self._open(digest)
            if file is None:
                if media_type is not None:
                    await self._catalog.write(Catalog.forget, [digest], self._blobs.is_gone)
                return None
            with contextlib.closing(file):
                body = await self._threads.run(_read_verified, file, digest)
                if body is None:
                    await self._threads.run(self._blobs.remove_damaged, file.fd, digest)
                    await self._catalog.write(Catalog.forget, [digest], self._blobs.is_gone)
                    return None
        except (StorageUnreadable, OSError) as error:
            # It is there all the same: upstream is asked this time, and nothing is forgotten.
            log.warning("cached manifest %s cannot be read: %s", digest, error)
            return None
        if media_type is None:
            # A file without a row, as yet: the catalog was lost.
            try:
                media_type = media_type_of(body, None)
            except UpstreamInvalid:
                return None
        self._uses[digest] = time.time()
        if media_type == DOCKER_SCHEMA1_SIGNED:
            media_type, body = await self._signed(digest, body)
        return self._warm(Manifest(media_type, digest, body))

    async def read_ahead(self, digests: Collection[Digest]) -> None:
        """Reads manifests, and those that they name, into memory. What cannot be read is left to `manifest`."""
        nothing: dict[Digest, str] = {}
        types = await self._catalog.read(nothing, Catalog.manifests_below, digests)
        wanted = {digest: type_ for digest, type_ in types.items() if digest not in self._hot and type_ != DOCKER_SCHEMA1_SIGNED}
        for manifest in await self._threads.run(self._read_all, wanted):
            self._warm(manifest)

    def _read_all(self, types: Mapping[Digest, str]) -> list[Manifest]:
        found, size = [], 0
        for digest, media_type in types.items():
            with contextlib.suppress(OSError):
                if (file := self._blobs.open(digest)) is None:
                    continue
                with contextlib.closing(file):
                    body = _read_verified(file, digest)
                if body is not None:
                    found.append(Manifest(media_type, digest, body))
                    size += len(body)
            if size > _HOT_BYTES:
                break
        return found

    async def _signed(self, digest: Digest, payload: bytes) -> tuple[str, bytes]:
        """Returns a schema 1 manifest with its signatures, or without them if they are lost."""
        found = await self._catalog.read(None, Catalog.document, _signed_key(digest))
        text = found.get("signed") if found is not None else None
        signed = text.encode("latin-1", "replace") if isinstance(text, str) else b""
        return (DOCKER_SCHEMA1_SIGNED, signed) if payload_of(signed) == payload else (DOCKER_SCHEMA1, payload)

    def cool(self) -> None:
        """Empties the memory of manifests. Their files, if they are still there, are read again."""
        self._hot.clear()
        self._hot_bytes = 0

    async def naming(self, blob: Digest, since: float) -> list[Digest]:
        """See `Store.naming`."""
        nothing: dict[Digest, float] = {}
        parents = await self._catalog.read(nothing, Catalog.parents, blob)
        return [digest for digest, used in parents.items() if max(used, self._uses.get(digest, 0.0)) >= since]

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, told: bool = True) -> None:
        """See `Store.put_manifest`."""
        self._warm(manifest)
        content = manifest.body
        if Digest.of(content, manifest.digest.algorithm) != manifest.digest:
            # Signed schema 1: the file holds what the digest names, so that it can be verified like any other.
            if (payload := payload_of(content)) is None:
                return
            await self._catalog.write(Catalog.set_document, _signed_key(manifest.digest), {"signed": content.decode("latin-1")})
            content = payload
        children = [digest for digests in children_of(manifest.body) for digest in digests]
        try:
            await self.make_room(len(content))
            await self._threads.run(self._blobs.put, manifest.digest, content)
        except (StorageFull, OSError) as error:
            log.warning("cannot keep manifest %s: %s", manifest.digest, error, extra={"cause": str(error)})
            return
        kept = Descriptor(manifest.media_type, manifest.digest, len(content))
        await self._catalog.write(Catalog.add_manifest, kept, children)
        await self._catalog.write(lambda catalog: catalog.possessions.hold(repository, manifest.digest, told))
        await self._eviction.count()

    def _warm(self, manifest: Manifest) -> Manifest:
        if manifest.digest not in self._hot:
            self._hot[manifest.digest] = manifest
            self._hot_bytes += len(manifest.body)
            while self._hot_bytes > _HOT_BYTES:
                self._hot_bytes -= len(self._hot.popitem(last=False)[1].body)
        return manifest

    async def flush(self) -> None:
        """Writes to the catalog when content was used."""
        if self._uses:
            uses, self._uses = self._uses, {}
            await self._catalog.write(Catalog.touch, uses)


def _add(catalog: Catalog, digest: Digest, size: int) -> None:
    catalog.add(digest, size)
    update_metrics(catalog)


def _signed_key(digest: Digest) -> str:
    return f"signed {digest}"


def _read_verified(file: BlobFile, digest: Digest) -> bytes | None:
    """Returns the content of a manifest's file; None if it is damaged. Raises OSError if it cannot be read for another reason than the disk."""
    try:
        body = file.read_all() if file.size <= MAX_SIZE else b""
    except OSError as error:
        if error.errno not in ROTTEN:
            raise
        return None
    return body if Digest.of(body, digest.algorithm) == digest else None
