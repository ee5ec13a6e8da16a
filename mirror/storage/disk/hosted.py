"""Implements `mirror.storage.hosted.HostedStore` on the disk: uploads as files of the spool, links as rows of the catalog (catalog/hosted.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar, TypeVarTuple

from mirror.disk_room import measure
from mirror.errors import InUse, LimitReached, Pinned, StorageFull, StorageUnreadable, TagImmutable
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.hosted import full
from mirror.storage.disk.maintenance.hosted_collection import HostedCollection
from mirror.storage.disk.upload_limits import UploadLimits
from mirror.storage.disk.uploads import UploadFile, UploadFiles, mark
from mirror.storage.hosted import HostedCollected, HostedUsage, PushedManifest
from mirror.storage.settings import HostedRules
from mirror.threads import ThreadPool
from mirror.units import format_size

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_STEP = 64 * 1024 * 1024
"""Bytes of an upload for which room is made at once, at most."""
_AHEAD = 8
"""Room is made for an eighth more than has come: the rest may never come, and the cache would be evicted for nothing."""
_TOUCHES = 100
"""How often a link is touched, at most, in the time for which a blob is kept without a manifest."""
_TRIES = 5
"""How often a manifest's file is written that an eviction removes before its row is there."""


class DiskHosted:
    """What was pushed, in a cache directory that several processes share."""

    def __init__(
        self,
        blobs: BlobStore,
        threads: ThreadPool,
        catalog: CatalogExecutor,
        rules: HostedRules,
        make_room: Callable[[int], Awaitable[None]],
        could_fit: Callable[[int], Awaitable[bool]],
    ) -> None:
        """`make_room` makes room for so many bytes on the disk, or raises StorageFull; `could_fit` returns whether it could, and evicts nothing."""
        self.rules = rules
        self.blobs = blobs
        self.catalog = catalog
        self._threads = threads
        self.make_room = make_room
        self._could_fit = could_fit
        self._uploads = UploadFiles(blobs.spool)
        self._limits = UploadLimits(self._uploads)

    @property
    def active(self) -> bool:
        return bool(self.rules.repositories)

    def covers(self, repository: Repository) -> bool:
        return self.rules.covers(repository)

    def take(self, rules: HostedRules) -> None:
        self.rules = rules

    # ------------------------------------------------------------------ uploads

    async def begin(self, repository: Repository, whose: str) -> DiskUpload:
        await self.check_limit(0)
        await self.run(self._limits.check_number, mark(whose))
        return await self._opened(repository, lambda: self._uploads.begin(repository, mark(whose)))

    async def resume(self, repository: Repository, upload: str, *, write: bool = True) -> DiskUpload:
        return await self._opened(repository, lambda: self._uploads.resume(repository, upload, write=write))

    async def _opened(self, repository: Repository, opens: Callable[[], UploadFile]) -> DiskUpload:
        """Returns the upload that `opens` opens in a thread; it is closed if the client leaves meanwhile."""
        opened: list[UploadFile] = []
        try:
            await self.run(lambda: opened.append(opens()))
        except BaseException:
            for file in opened:
                file.close()
            raise
        return DiskUpload(self, repository, opened[0])

    async def check_room(self, size: int) -> None:
        await self.check_limit(size)
        if not await self._could_fit(size):
            raise StorageFull(f"there is no room for {format_size(size)} on the disk, even without everything that is cached")

    async def check_limit(self, size: int) -> None:
        """Raises HostedFull if `size` bytes more are beyond hosted.max_size."""
        if (most := self.rules.max_size) is not None:
            usage = await self.usage()
            here = usage.content + usage.uploads
            if (over := here + size - most) > 0 and await self.run(self._limits.make_room, over) < over:
                raise full(here, size, most)

    async def grant(self, upload: UploadFile, size: int) -> None:
        """Makes room so that an upload can have `size` bytes. Raises LimitReached, StorageFull."""
        await self.run(self._check_share, upload, size)
        try:
            await self.make_room(size - upload.size)
        except StorageFull:
            if not await self.run(self._limits.make_room, size - upload.size):
                raise
            await self.make_room(size - upload.size)

    def _check_share(self, upload: UploadFile, size: int) -> None:
        capacity = self.rules.max_size
        if capacity is None:
            disk = measure(self.blobs.root, 0)
            capacity = disk.total - disk.reserve
        self._limits.check_size(upload.owner, upload.id, size, capacity)

    async def run(self, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs `work` in a thread. Raises StorageFull for its OSError."""
        try:
            return await self._threads.run(work, *arguments)
        except OSError as error:
            raise StorageFull(
                f"the disk cannot take what is pushed: {error.strerror}; nothing of this request is kept"
            ) from error

    # ------------------------------------------------------------------ content

    async def has(self, repository: Repository, digest: Digest) -> bool:
        return await self.catalog.do(lambda catalog: catalog.hosted.has(repository, digest))

    async def touch(self, repository: Repository, digest: Digest) -> bool:
        within = self.rules.grace / _TOUCHES
        return await self.catalog.do(lambda catalog: catalog.hosted.touch(repository, digest, within))

    async def mount(self, repository: Repository, digest: Digest, who: str) -> bool:
        if await self.run(self._is_intact, digest):
            return await self.catalog.do(self._mount, repository, digest, who)
        await self.catalog.write(Catalog.forget, [digest], self.blobs.is_gone)
        return False

    def _is_intact(self, digest: Digest) -> bool:
        """Returns whether content is here; what may have been changed since it was verified is verified again, and removed if it is damaged. Blocks."""
        return self._sealed_size(digest) is not None or (
            self.blobs.verify(digest, lambda: False) and not self.blobs.is_gone(digest)
        )

    def _sealed_size(self, digest: Digest) -> int | None:
        """Returns the bytes of content that was not changed since it was verified; None if there is none. Raises OSError."""
        file = self.blobs.open(digest)
        if file is None:
            return None
        file.close()
        return file.size if file.sealed else None

    def _mount(self, catalog: Catalog, repository: Repository, digest: Digest, who: str) -> bool:
        with catalog.durably():
            size = self._sealed_size(digest)
            if size is None:
                return False
            catalog.hosted.check_room(digest, size, self.rules.max_size)
            catalog.hosted.link(repository, digest, size, None, who)
        return True

    async def put_manifest(
        self, repository: Repository, pushed: PushedManifest, tags: Collection[str], who: str, *, served: bool = True
    ) -> None:
        manifest = pushed.manifest
        await self.check_limit(len(manifest.body))
        # Before its file is there: what is refused must not take room, which nothing would count.
        await self.catalog.do(
            lambda catalog: catalog.hosted.check_manifest(
                repository, pushed, tags, lambda tag: self.rules.is_immutable(repository, tag)
            )
        )
        await self.make_room(len(manifest.body))
        for _ in range(_TRIES):
            await self.run(self.blobs.put, manifest.digest, manifest.body)
            if await self.catalog.do(self._enter, repository, pushed, tags, who, served):
                return
        raise StorageUnreadable(f"the manifest {manifest.digest} disappears from the disk as soon as it is written")

    def _enter(
        self, catalog: Catalog, repository: Repository, pushed: PushedManifest, tags: Collection[str], who: str, served: bool
    ) -> bool:
        with catalog.durably():
            # Whoever removes content does so in a transaction.
            if self.blobs.size(pushed.manifest.digest) is None:
                return False
            catalog.hosted.check_room(pushed.manifest.digest, len(pushed.manifest.body), self.rules.max_size)
            catalog.hosted.put_manifest(
                repository, pushed, tags, who, lambda tag: self.rules.is_immutable(repository, tag), served=served
            )
        return True

    async def note_ruled(self, repository: Repository, tag: Tag, pushed: Digest, when: float, held_until: float | None) -> None:
        await self.catalog.do(lambda catalog: catalog.sightings.note_ruled(repository, tag.value, pushed, when, held_until))

    async def commit(self, repository: Repository, upload: UploadFile, digest: Digest, who: str) -> None:
        """See `Upload.commit`."""
        await self.run(upload.verify, digest)
        await self.catalog.do(self._publish, repository, upload, digest, who)

    def _publish(self, catalog: Catalog, repository: Repository, upload: UploadFile, digest: Digest, who: str) -> None:
        with catalog.durably():
            # Its bytes count as an upload's already.
            catalog.hosted.check_room(digest, upload.size, self.rules.max_size)
            catalog.hosted.link(repository, digest, upload.size, None, who)
            self.blobs.publish(upload.fd, upload.path, digest)

    async def check_complete(self) -> None:
        """Does nothing: all there is is here."""

    async def tags(self, repository: Repository, after: str = "", count: int | None = None) -> list[str]:
        return await self.catalog.do(lambda catalog: catalog.hosted.tags(repository, after, count))

    async def referrers(self, repository: Repository, subject: Digest) -> list[dict[str, Any]]:
        return await self.catalog.do(lambda catalog: catalog.hosted.referrers(repository, subject))

    async def delete_tag(self, repository: Repository, tag: str) -> bool:
        return await self.catalog.do(self._delete_tag, repository, tag)

    def _delete_tag(self, catalog: Catalog, repository: Repository, tag: str) -> bool:
        with catalog.durably():
            if catalog.hosted.is_pinned(repository, tag):
                raise Pinned(f"{repository.path}:{tag} is pinned: unpin it first")
            if self.rules.is_immutable(repository, tag):
                raise TagImmutable(f"{repository.path}:{tag} is immutable (hosted.immutable), and is not deleted")
            return catalog.hosted.delete_tag(repository, tag)

    async def delete_manifest(self, repository: Repository, digest: Digest) -> bool:
        return await self.catalog.do(self._delete_manifest, repository, digest)

    def _delete_manifest(self, catalog: Catalog, repository: Repository, digest: Digest) -> bool:
        with catalog.durably():
            return catalog.hosted.delete_manifest(repository, digest, lambda tag: self.rules.is_immutable(repository, tag))

    async def delete_blob(self, repository: Repository, digest: Digest) -> bool:
        return await self.catalog.do(self._delete_blob, repository, digest)

    def _delete_blob(self, catalog: Catalog, repository: Repository, digest: Digest) -> bool:
        with catalog.durably():
            if not catalog.hosted.has(repository, digest):
                return False
            if (parent := catalog.hosted.naming(repository, digest)) is not None:
                raise InUse(f"the manifest {parent} of {repository.path} names {digest}: delete that first")
            catalog.hosted.unlink(repository, [digest])
        return True

    # ------------------------------------------------------------------ upkeep

    async def usage(self) -> HostedUsage:
        content = await self.catalog.do(lambda catalog: catalog.hosted.size())
        uploads = await self.run(lambda: sum(upload.size for upload in self._uploads.unfinished()))
        return HostedUsage(content, uploads, self.rules.max_size)

    async def collect(self) -> HostedCollected:
        return await HostedCollection(self.blobs, self._threads, self.catalog, self._uploads, self.rules).collect()


class DiskUpload:
    """Implements `mirror.storage.hosted.Upload`."""

    def __init__(self, hosted: DiskHosted, repository: Repository, file: UploadFile) -> None:
        self._hosted = hosted
        self._repository = repository
        self._file = file
        self._granted = file.size
        """Up to which size there is room."""
        self.id = file.id

    @property
    def size(self) -> int:
        return self._file.size

    async def write(self, data: Sequence[bytes]) -> None:
        end = self._file.size + sum(map(len, data))
        # Each time, since other uploads grow meanwhile.
        await self._hosted.check_limit(end - self._file.size)
        if end > self._granted:
            wanted = max(end, min(self._granted + _STEP, end + end // _AHEAD))
            try:
                await self._hosted.grant(self._file, wanted)
            except (LimitReached, StorageFull):
                await self._hosted.grant(self._file, end)
                wanted = end
            self._granted = wanted
        try:
            await self._hosted.run(self._file.write, data)
        except StorageFull:
            await self._hosted.run(self._file.drop_torn)
            raise

    async def rewind(self, size: int) -> None:
        await self._hosted.run(self._file.rewind, size)

    async def commit(self, digest: Digest, who: str) -> None:
        await self._hosted.commit(self._repository, self._file, digest, who)

    async def discard(self) -> None:
        await self._hosted.run(self._file.unlink)

    def close(self) -> None:
        self._file.close()
