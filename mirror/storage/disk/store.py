"""The store on a disk: see mirror/storage/store.py for what it promises, blobs.py for its files, catalog/ for its database, mirror/locks.py for its locks.

A cached blob is opened in place, on the event loop. Everything else that touches the disk runs in threads: one for the catalog, one for the inventory, a pool
for files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mirror.events import NOBODY, Events
from mirror.locks import KeyedFileLock, Lock, attempt
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.disk.blobs import BlobStore, FileReader
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.deletion import delete
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.inventory_executor import InventoryExecutor
from mirror.storage.disk.catalog.usage import Usage
from mirror.storage.disk.content import Content
from mirror.storage.disk.hosted import DiskHosted
from mirror.storage.disk.maintenance import limit
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.disk.maintenance.expiry import Expiry
from mirror.storage.disk.maintenance.garbage_collection import GarbageCollection
from mirror.storage.disk.maintenance.mending import Mending
from mirror.storage.disk.maintenance.scrub import Scrub
from mirror.storage.disk.maintenance.verification import Verification
from mirror.storage.disk.outbox import DiskOutbox
from mirror.storage.disk.partial import DiskPartial
from mirror.storage.disk.statuses import Statuses
from mirror.storage.hosted import HostedStore
from mirror.storage.settings import Upkeep
from mirror.storage.sightings import Block, HeldTag, Move, Released, Ruled, Sighting
from mirror.storage.store import (
    Change,
    Collected,
    Deleted,
    ListedImage,
    Question,
    Restore,
    Statistics,
    TagRecord,
    Verified,
)
from mirror.tasks import BackgroundTask
from mirror.threads import ThreadPool

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

_FLUSH = 5.0
"""Seconds between two times that uses are written to the catalog."""
_LOCKS = {Question.CHECK: Lock.CHECK, Question.FETCH: Lock.FETCH}
_WATCH = 1.0
"""Seconds between checks for changes by other processes."""


class DiskStore:
    """Implements `mirror.storage.store.Store` in a cache directory, which several processes may share."""

    def __init__(
        self,
        root: Path,
        upkeep: Upkeep,
        offline: Callable[[], bool] = lambda: False,
        events: Events = NOBODY,
        bucket: str | None = None,
    ) -> None:
        """Opens the directory, and creates it if there is none. While `offline`, nothing expires. What is added is queued for a `bucket`. Raises OSError or CatalogFailed if it cannot be used."""
        self.blobs = BlobStore(root)
        self._catalog = CatalogExecutor(root / "catalog", events, root / "hosted", bucket)
        self.outbox = DiskOutbox(root, self._catalog)
        self._has_bucket = bucket is not None
        self.threads = ThreadPool()
        self.inventory = InventoryExecutor(root)
        self._upkeep = upkeep
        self._offline = offline
        self._eviction = Eviction(self.blobs, self._catalog, upkeep)
        self._content = Content(self.blobs, self.threads, self._catalog, self._eviction)
        self.hosted: HostedStore = DiskHosted(
            self.blobs, self.threads, self._catalog, upkeep.hosted, self._make_room_apart, self._eviction.could_fit_apart
        )
        self._mending = Mending(self.blobs, self.threads, self._catalog, self._eviction)
        self._usage = Usage(self._catalog)
        self._locks = KeyedFileLock(root / "catalog" / "asking.lock")
        self._statuses = Statuses(root)
        self._stack = AsyncExitStack()
        self._stack.callback(self.threads.close)
        self._stack.push_async_callback(self._catalog.aclose)
        self._stack.callback(self._locks.close)
        self._stack.push_async_callback(self._content.aclose)
        self._stack.push_async_callback(self._usage.aclose)
        self._stack.push_async_callback(self.inventory.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    def start(self, restore: Restore) -> None:
        limit.note(self.blobs.root, self._upkeep.max_size)
        self._eviction.warn_of_the_disk()
        expiry = Expiry(self._catalog, self._eviction, self._upkeep.expire, self._offline)
        work = [self._mending.run, self._write_uses, expiry.run]
        if self._upkeep.scrub_rate:
            work.append(Scrub(self.blobs, self._catalog, restore, self._upkeep.scrub_rate, self._upkeep.scrub_interval).run)
        for task in [BackgroundTask(this) for this in work]:
            self._stack.push_async_callback(task.aclose)
            task.start()
        self.inventory.start()
        self.start_counting()

    def start_counting(self) -> None:
        self._usage.start()

    async def _make_room_apart(self, need: int) -> None:
        if not self._eviction.take_room(need):
            await self._eviction.make_room(need, apart=True)

    async def _write_uses(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH)
            await self._content.flush()

    # ------------------------------------------------------------------ content

    async def open(self, digest: Digest) -> FileReader | None:
        return await self._content.open(digest)

    def size(self, digest: Digest) -> int | None:
        return self._content.size(digest)

    def verify_behind(self, digest: Digest) -> None:
        self._content.verify_behind(digest)

    def partial(self, digest: Digest, claimed: int | None = None) -> DiskPartial:
        return self._content.partial(digest, claimed)

    def hot_manifest(self, digest: Digest) -> Manifest | None:
        return self._content.hot_manifest(digest)

    async def manifest(self, digest: Digest) -> Manifest | None:
        return await self._content.manifest(digest)

    async def manifests_of(self, images: Sequence[tuple[Repository, Reference]]) -> list[Manifest | None]:
        known = await self._catalog.read([reference for _, reference in images], Catalog.resolve, images)
        await self._content.read_ahead({digest for digest in known if not isinstance(digest, Tag)})
        return [None if isinstance(digest, Tag) else await self.manifest(digest) for digest in known]

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, told: bool = True) -> None:
        await self._content.put_manifest(repository, manifest, told=told)

    async def naming(self, blob: Digest, since: float) -> list[Digest]:
        return await self._content.naming(blob, since)

    async def statistics(self) -> Statistics:
        size, entries = await self._catalog.read((0, 0), Catalog.totals)
        return Statistics(size, entries, self._upkeep.max_size)

    async def shortage(self) -> str:
        size, _ = await self._catalog.read((0, 0), Catalog.totals)
        return await self.threads.run(self._eviction.shortage, size)

    # ------------------------------------------------------------------ names

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        return await self._catalog.read(None, Catalog.tag, repository, tag.value)

    async def set_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, seen: bool = True) -> None:
        await self._catalog.write(Catalog.set_tag, repository, tag.value, record, seen)

    async def drop_tag(self, repository: Repository, tag: Tag, gone: float | None = None) -> None:
        await self._catalog.write(Catalog.drop_tag, repository, tag.value, gone)

    async def note_tag(self, repository: Repository, tag: Tag, found: Descriptor, when: float) -> None:
        await self._catalog.write(lambda catalog: catalog.sightings.note_seen(repository, tag.value, found, when))

    async def history(self, repository: Repository, tag: Tag) -> list[Sighting]:
        nothing: list[Sighting] = []
        return await self._catalog.read(nothing, lambda catalog: catalog.sightings.of_tag(repository, tag.value))

    async def first_seen(self, tags: Sequence[tuple[Repository, Tag, Digest]]) -> list[float | None]:
        unknown: list[float | None] = [None] * len(tags)
        return await self._catalog.read(unknown, lambda catalog: catalog.sightings.first_seen(tags))

    async def tags_of(self, repository: Repository, digest: Digest) -> list[str]:
        return await self._catalog.read([], lambda catalog: catalog.sightings.tags_of(repository, digest))

    async def moves(self, count: int) -> list[Move]:
        return await self._catalog.do(lambda catalog: catalog.sightings.moves(count))

    async def held(self, repository: Repository | None = None) -> list[HeldTag]:
        return await self._catalog.do(lambda catalog: catalog.sightings.held(repository))

    async def release(self, repository: Repository, tag: Tag, released: Released, only: Digest | None = None) -> Digest | None:
        return await self._catalog.do(lambda catalog: catalog.sightings.release(repository, tag.value, released, only))

    def count_ruling(self, rule: str, verdict: str, repository: Repository, reference: Reference, reason: str) -> None:
        self._usage.ruled(rule, verdict, repository, reference, reason)

    async def rulings(self, count: int) -> list[Ruled]:
        await self._usage.flush()
        return await self._catalog.do(lambda catalog: catalog.sightings.rulings(count))

    async def blocks(self) -> list[Block]:
        return await self._catalog.do(lambda catalog: catalog.sightings.blocks())

    async def block(self, block: Block) -> None:
        await self._catalog.do(lambda catalog: catalog.sightings.block(block))

    async def unblock(self, digest: Digest) -> bool:
        return await self._catalog.do(lambda catalog: catalog.sightings.unblock(digest))

    async def tags(self, repository: Repository, meaning: Digest | None = None) -> list[str]:
        return await self._catalog.read([], Catalog.tags, repository, meaning)

    async def repositories(self) -> list[Repository]:
        nothing: list[tuple[str, str]] = []
        return [Repository(*names) for names in sorted(await self._catalog.read(nothing, Catalog.repositories))]

    async def holder(self, digest: Digest) -> Repository | None:
        return await self._catalog.read(None, Catalog.holder, digest)

    async def holders(self, digest: Digest) -> frozenset[Repository]:
        nobody: frozenset[Repository] = frozenset()
        return await self._catalog.read(nobody, lambda catalog: catalog.possessions.holders(digest))

    async def told_holders(self, digest: Digest) -> frozenset[Repository]:
        nobody: frozenset[Repository] = frozenset()
        return await self._catalog.read(nobody, lambda catalog: catalog.possessions.told_holders(digest))

    async def note_holder(self, repository: Repository, digests: Collection[Digest], *, told: bool) -> None:
        await self._catalog.write(lambda catalog: catalog.possessions.note(repository, digests, told))

    async def note_brought(self, repository: Repository | None, references: Collection[Reference]) -> None:
        if self._has_bucket:
            for reference in references:
                await self.outbox.note_fetched(repository, reference)

    async def is_named(self, repository: Repository, digest: Digest) -> bool:
        return await self._catalog.read(False, lambda catalog: catalog.possessions.is_named(repository, digest))

    async def document(self, key: str) -> dict[str, Any] | None:
        return await self._catalog.read(None, Catalog.document, key)

    async def set_document(self, key: str, value: dict[str, Any]) -> None:
        await self._catalog.write(Catalog.set_document, key, value)

    def lock(self, question: Question, key: str) -> AbstractAsyncContextManager[None]:
        return self._locks.take(_LOCKS[question], key)

    def asking_peer(self, digest: Digest) -> AbstractContextManager[None]:
        return self._locks.share(f"peer {digest}")

    def asks_peer(self, digest: Digest) -> bool:
        return self._locks.is_shared(f"peer {digest}")

    async def watch(self) -> AsyncGenerator[Change, None]:
        while True:
            await asyncio.sleep(_WATCH)
            change = await self._catalog.read(None, Catalog.changes)
            if change is not None:
                if change.deleted:
                    self._content.cool()
                yield change

    # ------------------------------------------------------------------ what people do

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        digest = await self._catalog.do(Catalog.pin, repository, reference)
        return digest is not None and self.size(digest) is not None

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        return await self._catalog.do(Catalog.unpin, repository, reference)

    async def set_listed(self, lists: Mapping[str, Collection[tuple[Repository, Reference]] | None]) -> None:
        await self._catalog.do(lambda catalog: catalog.listed.replace(lists))

    async def listed(self) -> list[ListedImage]:
        return await self._catalog.do(lambda catalog: catalog.listed.images())

    async def note_listed(
        self, name: str, repository: Repository, reference: Reference, tried: float, fault: str, attached: Collection[Digest] = ()
    ) -> None:
        await self._catalog.do(lambda catalog: catalog.listed.note(name, repository, reference, tried, fault, attached))

    def lead_lists(self) -> AbstractContextManager[None]:
        return attempt(self.blobs.root / "catalog" / "lists.lock")

    async def delete(self, repository: Repository, reference: Reference, *, force: bool = False) -> Deleted:
        deleted = await self._catalog.do(self._delete, repository, reference, force)
        self._content.cool()
        await self._eviction.count()
        return deleted

    def _delete(self, catalog: Catalog, repository: Repository, reference: Reference, force: bool) -> Deleted:
        with self._eviction.exclusive():
            return delete(catalog, self.blobs, repository, reference, force)

    async def collect(self, *, dry_run: bool = False) -> Collected:
        garbage = GarbageCollection(
            self.blobs, self.threads, self._catalog, self._eviction, self._mending, self._upkeep, self._offline
        )
        return await (garbage.dry_run() if dry_run else garbage.collect())

    async def contents(self) -> Mapping[Digest, int]:
        return await Verification(self.blobs, self.threads, self._catalog).contents()

    async def verify(self, contents: Mapping[Digest, int], *, remove: bool) -> AsyncGenerator[Verified, None]:
        async with contextlib.aclosing(
            Verification(self.blobs, self.threads, self._catalog).verify(contents, remove)
        ) as verdicts:
            async for verdict in verdicts:
                yield verdict

    # ------------------------------------------------------------------ usage

    async def set_status(self, value: Any) -> None:
        await self.threads.run(self._statuses.write, value)

    async def statuses(self) -> list[Any]:
        return await self.threads.run(self._statuses.read)

    def count_pull(self, repository: Repository, reference: Reference) -> None:
        self._usage.pulled(repository, reference)
