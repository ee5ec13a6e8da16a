"""Finds out what belongs only to images that are held back: with `strict`, none of that is served by its digest.

A client that asks for a blob has most often got the manifest that names it from this mirror. So what is held back is not fetched for this until a client asks for
something that no cached manifest names: then the manifests that are held back are, once, since it may be theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mirror.errors import CatalogFailed
from mirror.guards.children import Children
from mirror.guards.rules import Rule
from mirror.names import Digest, Repository, Tag
from mirror.storage.sightings import HeldTag
from mirror.storage.store import Store

_DEEPEST = 3
"""Levels from a layer up to an index."""
_MOST_FETCHED = 16
"""Images held back in a repository, those since last, that are fetched for what they name."""
_MOST_READ = 10_000


class HeldBack:
    """Asks the store, and upstream for manifests that are held back."""

    def __init__(self, store: Store, children: Children) -> None:
        self._store = store
        self._children = children
        self._read: set[tuple[Repository, Digest]] = set()
        """Images held back whose manifests are here, or cannot be had."""

    async def tags_of(self, rules: Sequence[Rule], repository: Repository, digest: Digest) -> list[str]:
        """Returns the tags that something is held back by, if it belongs to nothing else; of rules that are not strict none."""
        strict = [rule for rule in rules if rule.strict]
        if not strict:
            return []
        try:
            held = await self._store.held(repository)
        except CatalogFailed:
            return []
        waiting = [tag for tag in held if not tag.released]
        fitting = [tag for tag in waiting if any(rule.fits(repository, (tag.tag.value,)) for rule in strict)]
        held = [tag for tag in fitting if not await self._is_served(repository, tag.new)]
        if not held:
            return []
        roots = {tag.new for tag in held}
        if digest not in roots and not await self._store.naming(digest, 0.0):
            await self._fetch(repository, held)
        return sorted(tag.tag.value for tag in held) if await self._belongs_to(digest, roots, _DEEPEST) else []

    async def _fetch(self, repository: Repository, held: Sequence[HeldTag]) -> None:
        latest = dict.fromkeys(tag.new for tag in sorted(held, key=lambda tag: tag.since, reverse=True)[:_MOST_FETCHED])
        missing = [digest for digest in latest if (repository, digest) not in self._read]
        fetched = await asyncio.gather(*(self._children.fetch_whole(repository, digest) for digest in missing))
        if len(self._read) > _MOST_READ:
            self._read.clear()
        self._read.update((repository, digest) for digest, is_whole in zip(missing, fetched, strict=True) if is_whole)

    async def _is_served(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether another tag means a digest, and clients get it by that."""
        records = [await self._store.tag(repository, Tag(tag)) for tag in await self._store.tags(repository, digest)]
        return any(record is not None and record.held_until is None for record in records)

    async def _belongs_to(self, digest: Digest, roots: set[Digest], levels: int) -> bool:
        if digest in roots:
            return True
        parents = await self._store.naming(digest, 0.0) if levels else []
        for parent in parents:
            if not await self._belongs_to(parent, roots, levels - 1):
                return False
        return bool(parents)
