"""Pins, unpins, refreshes and deletes cached images, for the command line and the dashboard. A mirror may be running on the directory."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

from mirror.cache.tags import Tags
from mirror.names import Digest, Reference, Repository
from mirror.storage.store import Deleted, Store
from mirror.tasks import BackgroundTask


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

    async def _watch(self) -> None:
        async with aclosing(self._store.watch()) as changes:
            async for change in changes:
                self._manifests.forget(None if change.deleted else change.tags)
