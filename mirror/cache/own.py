"""Reads the repositories that live in the store: what they have is served, no registry is asked, and nothing expires."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from mirror.cache.guarding import Guard, Ruling
from mirror.errors import BlobUnknown, CatalogFailed, ManifestUnknown, MirrorError
from mirror.manifests import Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_MOST_IN_MEMORY = 50_000
_MOST_NAMES = 10_000
_INTERVAL = 3600.0
"""Seconds between two collections."""


class Own:
    """Answers for hosted repositories. What is remembered is dropped when a process changes it, of another one a second later."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._active = store.hosted.active
        self._meant: OrderedDict[tuple[Repository, Reference], Digest] = OrderedDict()
        """What references mean; of a digest, that the repository has it."""
        self._ruled: dict[tuple[Repository, Reference], tuple[Digest, float | None]] = {}
        """What tags mean, and until when that is held back, as the catalog has it."""
        self._covered: dict[Repository, bool] = {}
        self._changes = 0
        self._collecting = BackgroundTask(self._collect)

    def covers(self, repository: Repository) -> bool:
        """Returns whether a repository lives here."""
        if not self._active:
            return False
        found = self._covered.get(repository)
        if found is None:
            if len(self._covered) >= _MOST_NAMES:
                self._covered.clear()
            found = self._covered[repository] = self._store.hosted.covers(repository)
        return found

    def rules_changed(self) -> None:
        """Takes note that other repositories may live here from now on."""
        self._active = self._store.hosted.active
        self._covered.clear()
        self.forget()
        self.start()

    def forget(self, names: Iterable[tuple[Repository, Reference]] | None = None) -> None:
        """Forgets what some references mean, or all."""
        self._changes += 1
        if names is None:
            self._meant.clear()
            self._ruled.clear()
        for name in names or ():
            self._meant.pop(name, None)
            self._ruled.pop(name, None)

    def hot(self, repository: Repository, reference: Reference) -> Manifest | None:
        """Returns a manifest that is in memory."""
        digest = self._meant.get((repository, reference))
        return None if digest is None else self._store.hot_manifest(digest)

    def start(self) -> None:
        """Starts to delete what these repositories need no longer."""
        if self._active:
            self._collecting.start()

    async def aclose(self) -> None:
        await self._collecting.aclose()

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self._store.hosted.collect()
            except (MirrorError, OSError) as error:
                log.error("what hosted repositories need no longer could not be deleted: %s", error)
            self.forget()

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """Returns a manifest. Raises ManifestUnknown."""
        digest = self._meant.get((repository, reference)) or await self._find(repository, reference)
        manifest = None if digest is None else await self._store.manifest(digest)
        if manifest is None:
            await self._store.hosted.check_complete()
            raise ManifestUnknown(f"{repository.path} lives in this mirror, and has no manifest {reference}")
        return manifest

    async def _find(self, repository: Repository, reference: Reference) -> Digest | None:
        changes = self._changes
        if isinstance(reference, Tag):
            record = await self._store.tag(repository, reference)
            digest = None if record is None else record.descriptor.digest
        else:
            digest = reference if await self._store.hosted.has(repository, reference) else None
        if digest is not None and changes == self._changes:
            # Else it may be what was before the change.
            self._meant[repository, reference] = digest
            if len(self._meant) > _MOST_IN_MEMORY:
                self._meant.popitem(last=False)
        return digest

    async def rule(self, guard: Guard, repository: Repository, tag: Tag) -> tuple[Ruling, Manifest]:
        """Decides what clients get by a tag, and has the catalog know. Returns what the tag means, too. Raises ManifestUnknown."""
        pushed = await self.manifest(repository, tag)
        ruling = await guard.rule_tag(repository, tag, pushed.descriptor)
        ruled = pushed.digest, ruling.held_until
        if self._ruled.get((repository, tag)) != ruled:
            if len(self._ruled) >= _MOST_IN_MEMORY:
                self._ruled.clear()
            # A catalog that fails is no reason for a pull to fail.
            with contextlib.suppress(CatalogFailed):
                await self._store.hosted.note_ruled(repository, tag, pushed.digest, time.time(), ruling.held_until)
                self._ruled[repository, tag] = ruled
        return ruling, pushed

    async def check_blob(self, repository: Repository, digest: Digest) -> None:
        """Raises BlobUnknown if a repository does not have a blob."""
        if not await self._store.hosted.has(repository, digest):
            await self._store.hosted.check_complete()
            raise BlobUnknown(f"{repository.path} lives in this mirror, and has no blob {digest}")

    async def referrers(self, repository: Repository, digest: Digest) -> list[dict[str, Any]]:
        """Returns the descriptors of a manifest's referrers, with those in the index that clients keep where a registry has no list (distribution-spec 1.1,
        "Referrers Tag Schema")."""
        found = await self._store.hosted.referrers(repository, digest)
        known = {entry.get("digest") for entry in found}
        with contextlib.suppress(ManifestUnknown, ValueError, KeyError, TypeError):
            index = await self.manifest(repository, Tag(f"{digest.algorithm}-{digest.hex[:64]}"))
            listed = json.loads(index.body)["manifests"]
            found += [entry for entry in listed if isinstance(entry, dict) and entry.get("digest") not in known]
        return found
