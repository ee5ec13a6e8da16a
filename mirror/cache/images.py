"""Pins, unpins, refreshes and deletes cached images, for the command line and the dashboard. A mirror may be running on the directory."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mirror.cache.tags import Tags
from mirror.errors import ManifestUnknown, RequestInvalid
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.sightings import Block, Released
from mirror.storage.store import Deleted, Store
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a tag meant before upstream was asked, None if that was not known, and what it means now."""

    before: Digest | None
    now: Digest

    @property
    def changed(self) -> bool:
        return self.before != self.now


class Images:
    """Changes images in the store, and drops remembered tags. All methods raise CatalogFailed if the change cannot be stored."""

    def __init__(self, store: Store, manifests: Tags) -> None:
        self._store = store
        self._manifests = manifests
        self.ruled: Callable[[], Awaitable[None]] = _nothing
        """Called when something was blocked or released by hand."""
        self.audit: Callable[[str, str, str, str, str], None] = _forget
        """Called with what was decided by hand: the action, who, the image or nothing, the digest, and why."""
        self._background_task = BackgroundTask(self._watch)

    def start(self) -> None:
        """Starts to follow what other processes change."""
        self._background_task.start()

    async def aclose(self) -> None:
        await self._background_task.aclose()

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        """Protects an image from eviction, with all of it that is cached now or later. Fetches nothing; returns False if its manifest is not cached yet."""
        return await self._store.pin(repository, reference)

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        """Lets an image be evicted again. Returns False if it was not pinned by this reference."""
        return await self._store.unpin(repository, reference)

    async def refresh(self, repository: Repository, reference: Reference) -> Refreshed:
        """Asks upstream now what a tag means; a new manifest is cached then, its layers are not fetched. A digest means what it says.

        Raises MirrorError: Unknown where upstream has it no longer, and the tag is forgotten.
        """
        if isinstance(reference, Digest):
            return Refreshed(reference, reference)
        record = await self._store.tag(repository, reference)
        found = await self._manifests.refresh(repository, reference)
        return Refreshed(record.descriptor.digest if record else None, found.digest)

    async def delete(self, repository: Repository, reference: Reference, force: bool = False) -> Deleted:
        """See `Store.delete`."""
        deleted = await self._store.delete(repository, reference, force=force)
        self._manifests.forget()
        return deleted

    async def release(self, repository: Repository, tag: Tag, released: Released, only: Digest | None = None) -> Digest:
        """Lets clients have what a tag means at its registry, before its time. Returns that. Raises ManifestUnknown if the tag was never seen or is gone; RequestInvalid if it
        means something else than `only`: what nobody has looked at is not released."""
        digest = await self._store.release(repository, tag, released, only)
        if digest is None:
            history = await self._store.history(repository, tag)
            if only is not None and history and history[-1].gone is None and history[-1].digest != only:
                raise RequestInvalid(f"it means {history[-1].digest} at its registry now, and not what was to be released")
            raise ManifestUnknown(f"{image_name(repository, tag)} was never asked for here, or is gone at its registry")
        log.warning("%s was released by %s, to mean %s: %s", image_name(repository, tag), released.who, digest, released.why)
        self.audit("release", released.who, image_name(repository, tag), str(digest), released.why)
        await self._has_ruled()
        return digest

    async def block(self, block: Block) -> None:
        """Refuses content from now on."""
        await self._store.block(block)
        log.warning("%s was blocked by %s: %s", block.digest, block.who, block.reason)
        self.audit("block", block.who, "", str(block.digest), block.reason)
        await self._has_ruled()

    async def unblock(self, digest: Digest, who: str) -> None:
        """Ends a block by hand. Raises ManifestUnknown if there is none."""
        if not await self._store.unblock(digest):
            raise ManifestUnknown(f"{digest} is not blocked by hand")
        log.warning("%s was unblocked by %s", digest, who)
        self.audit("unblock", who, "", str(digest), "")
        await self._has_ruled()

    async def _has_ruled(self) -> None:
        self._manifests.forget()
        await self.ruled()

    async def _watch(self) -> None:
        async with aclosing(self._store.watch()) as changes:
            async for change in changes:
                self._manifests.forget(None if change.deleted or change.ruled else change.tags)
                if change.ruled:
                    await self.ruled()


async def _nothing() -> None:
    pass


def _forget(*_: str) -> None:
    pass
