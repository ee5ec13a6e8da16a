"""Deletes what hosted repositories need no longer: tags by the rules of retention, what nothing names, and content that no repository has any more.

A push names a blob long before its manifest does. So a blob is kept for `HostedRules.grace` since a push has last asked for it or sent it, and a push whose
manifest comes later than that is told which blobs are missing. Each step is a transaction, and so is each push: what a manifest names that was answered 201 is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from mirror.events import Action, Event
from mirror.names import Digest, Repository
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.uploads import UploadFiles
from mirror.storage.hosted import HostedCollected
from mirror.storage.settings import HostedRules, Keep
from mirror.threads import ThreadPool

_BATCH = 200
"""Files that are removed in one transaction, so that others do not wait long."""


class HostedCollection:
    """One collection. Several processes may run one at the same time."""

    def __init__(
        self, blobs: BlobStore, threads: ThreadPool, catalog: CatalogExecutor, uploads: UploadFiles, rules: HostedRules
    ) -> None:
        self._blobs = blobs
        self._threads = threads
        self._catalog = catalog
        self._uploads = uploads
        self._rules = rules

    async def collect(self, *, dry_run: bool = False) -> HostedCollected:
        """See `HostedStore.collect`; for a dry run the catalog is a copy. Raises CatalogFailed, OSError."""
        tags: list[str] = []
        manifests = blobs = size = 0
        for repository in await self._catalog.do(lambda catalog: catalog.hosted.repositories()):
            tags += await self._catalog.do(self._drop_tags, repository)
            while count := await self._catalog.do(self._unlink_manifests, repository):
                # What they named is without a name now.
                manifests += count
            blobs += await self._catalog.do(self._unlink_blobs, repository)
        passed: set[Digest] = set()
        while (freed := await self._catalog.do(self._release, passed)) is not None:
            size += freed
        uploads = await self._threads.run(lambda: self._uploads.sweep(self._rules.grace, dry_run=dry_run))
        return HostedCollected(tuple(tags), manifests, blobs, size, uploads)

    def _drop_tags(self, catalog: Catalog, repository: Repository) -> list[str]:
        with catalog.changing():
            dropped = [
                tag
                for tag in tags_beyond(self._rules, repository, catalog.hosted.dated_tags(repository), time.time())
                if not catalog.hosted.is_pinned(repository, tag)
            ]
            for tag in dropped:
                catalog.hosted.delete_tag(repository, tag)
        for tag in dropped:
            catalog.events.send(Event(Action.DELETE, repository, tag=tag, actor="hosted.keep"))
        return [f"{repository.path}:{tag}" for tag in dropped]

    def _unlink_manifests(self, catalog: Catalog, repository: Repository) -> int:
        with catalog.changing():
            unnamed = catalog.hosted.unnamed_manifests(repository, time.time() - self._rules.untagged)
            if unnamed:
                catalog.hosted.unlink(repository, unnamed)
        return len(unnamed)

    def _unlink_blobs(self, catalog: Catalog, repository: Repository) -> int:
        with catalog.changing():
            unnamed = catalog.hosted.unnamed_blobs(repository, time.time() - self._rules.grace)
            if unnamed:
                catalog.hosted.unlink(repository, unnamed)
        return len(unnamed)

    def _release(self, catalog: Catalog, passed: set[Digest]) -> int | None:
        """Removes some content that no repository has, or leaves it to the cache; returns the bytes that are free, None if there is nothing left to do."""
        freed = 0
        with catalog.changing():
            left = [found for found in catalog.hosted.unlinked(_BATCH + len(passed)) if found[0] not in passed]
            for digest, size in left:
                if catalog.hosted.return_to_cache(digest):
                    continue
                if self._blobs.remove(digest):
                    catalog.drop(digest)
                    freed += size
                else:
                    # Somebody reads it: the next collection removes it.
                    passed.add(digest)
        return freed if left else None


def tags_beyond(rules: HostedRules, repository: Repository, tags: list[tuple[str, float]], now: float) -> Iterator[str]:
    """Yields the tags that the rules do not keep. `tags` have the time when each was pushed, the last one first; each rule counts its own."""
    counts: dict[Keep, int] = {}
    for tag, pushed in tags:
        rule = rules.keeping(repository, tag)
        if rule is None:
            continue
        counts[rule] = counts.get(rule, 0) + 1
        recent = rule.age is not None and pushed > now - rule.age
        if not recent and not (rule.last is not None and counts[rule] <= rule.last):
            yield tag
