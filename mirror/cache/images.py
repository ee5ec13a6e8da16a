"""What people do to cached images: pin, unpin, refresh, delete. For the command line and the dashboard alike, beside a running server or without one."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from mirror.cache.tags import Tags
from mirror.errors import CatalogFailed, ManifestUnknown, Pinned
from mirror.names import Digest, Reference, Repository, image_name
from mirror.storage.disk.content import Content
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_LOOK = 1.0
"""Seconds after which what another process has deleted is no longer served from memory."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did. `freed` bytes were the image's alone, `kept` bytes stay because other images have them too."""

    digest: Digest
    tags: tuple[str, ...]
    freed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a tag meant before upstream was asked, None where that was not known, and what it means."""

    before: Digest | None
    now: Digest

    @property
    def changed(self) -> bool:
        return self.before != self.now


class Images:
    """Each raises CatalogFailed where it could not be written down."""

    def __init__(self, content: Content, manifests: Tags) -> None:
        self._content = content
        self._records = content.records
        self._manifests = manifests
        self._background_task = BackgroundTask(self._watch)

    def start(self) -> None:
        """Begins to notice what other processes delete."""
        self._background_task.start()

    async def aclose(self) -> None:
        await self._background_task.aclose()

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        """Keeps an image from eviction, what is cached of it now and what will be. Fetches nothing: False where its manifest is not cached yet."""
        catalog = self._records.catalog
        await self._do(catalog.pin, repository, reference)
        found = await self._do(catalog.removal.find, repository, reference)
        return found is not None and self._content.store.size(found.digest) is not None

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        """Gives an image back to eviction. False where it was not pinned by that very reference."""
        return await self._do(self._records.catalog.unpin, repository, reference)

    async def refresh(self, repository: Repository, reference: Reference) -> Refreshed:
        """Asks upstream now what a tag means; a new manifest is cached then, its layers are not fetched. A digest means what it says.

        Raises MirrorError: Unknown where upstream has it no longer, and the tag is forgotten.
        """
        if isinstance(reference, Digest):
            return Refreshed(reference, reference)
        record = await self._do(self._records.catalog.tag, repository, reference.value)
        found = await self._manifests.refresh(repository, reference)
        return Refreshed(record.descriptor.digest if record else None, found.digest)

    async def delete(self, repository: Repository, reference: Reference, force: bool = False) -> Deleted:
        """Deletes an image: its name, and everything that no other image has; by digest, all tags of the repository that mean it.

        What is being read stays readable to its end. Raises ManifestUnknown where nothing is known by that name, and Pinned, unless it is to be by `force`.
        """
        deleted = await self._do(self._delete, repository, reference, force)
        self._forget()
        await self._content.eviction.count()
        return deleted

    def _delete(self, repository: Repository, reference: Reference, force: bool) -> Deleted:
        catalog = self._records.catalog
        with self._content.eviction.alone(), catalog.changing():
            named = catalog.removal.find(repository, reference)
            if named is None:
                raise ManifestUnknown(f"nothing is cached of {image_name(repository, reference)}")
            if named.pinned and not force:
                raise Pinned(f"{image_name(repository, reference)} is pinned: unpin it first, or force it")
            catalog.removal.forget_names(repository, reference, named)
            gone, kept = catalog.removal.alone(repository, named.digest)
            for name in gone:
                digest = Digest.parse(name)
                self._content.store.unlink(digest)
                catalog.drop(digest)
        return Deleted(named.digest, named.tags, sum(gone.values()), kept)

    def _forget(self) -> None:
        self._manifests.forget()
        self._content.cool()

    async def _watch(self) -> None:
        seen: int | None = None
        while True:
            count = await self._records.read(seen, self._records.catalog.removal.count)
            if seen is not None and count != seen:
                self._forget()
            seen = count
            await asyncio.sleep(_LOOK)

    async def _do(self, method: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        try:
            return await self._records.do(method, *arguments)
        except (sqlite3.Error, OSError) as error:
            raise CatalogFailed(f"the cache's catalog could not be used: {error}") from None
