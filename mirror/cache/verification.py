"""Verification for `mirror verify`: reads and hashes all cached content, and fetches again what is damaged. The store's scrub does the same over weeks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from mirror.cache.tags import Tags
from mirror.downloads.flight import Progress
from mirror.errors import MirrorError
from mirror.names import Digest, Repository
from mirror.storage.store import State, Store, Verified


@dataclass(frozen=True, slots=True)
class Damage:
    """Damaged or missing content. `size` is in bytes; `fault` says why it could not be repaired, and is empty if it was."""

    digest: Digest
    size: int
    holder: Repository | None
    fault: str


@dataclass
class Verifying:
    """The progress of a verification, in bytes, and the damage found so far."""

    total: int = 0
    here: int = 0
    count: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        return "verifying"


class Verification:
    """Verifies the content of a store, whether or not a mirror is running on it."""

    def __init__(
        self, store: Store, manifests: Tags, fetch: Callable[[Repository, Digest], AsyncGenerator[Progress, None]]
    ) -> None:
        """`fetch` downloads a blob into the cache."""
        self._store = store
        self._manifests = manifests
        self._fetch = fetch

    async def verify(self, this: Verifying, repair: bool) -> None:
        """Verifies all content and updates `this` on the way. Changes nothing unless `repair` is set. Raises OSError, CatalogFailed."""
        contents = await self._store.contents()
        this.total = sum(contents.values())
        async with aclosing(self._store.verify(contents, remove=repair)) as verdicts:
            async for found in verdicts:
                if found.state is not State.WHOLE:
                    this.damaged.append(await self._repaired(found, repair))
                this.here += found.size
                this.count += 1
        # Content that was removed meanwhile has no verdict.
        this.here, this.count = this.total, len(contents)

    async def _repaired(self, found: Verified, repair: bool) -> Damage:
        if found.state is State.UNREADABLE:
            return Damage(
                found.digest, found.size, found.holder, f"the disk does not give it now ({found.fault}); it was left as it is"
            )
        if not repair:
            return Damage(found.digest, found.size, found.holder, "it was to be left as it is")
        if found.holder is None:
            why = "no repository is known that has it; it is fetched again when a client asks for it"
            return Damage(found.digest, found.size, None, why)
        try:
            await self.restore(found.holder, found.digest, found.is_manifest)
        except MirrorError as error:
            return Damage(found.digest, found.size, found.holder, error.message)
        return Damage(found.digest, found.size, found.holder, "")

    async def restore(self, holder: Repository, digest: Digest, is_manifest: bool) -> None:
        """Fetches damaged content again, which is no longer cached. Raises MirrorError."""
        if not is_manifest:
            async with aclosing(self._fetch(holder, digest)) as progress:
                async for _ in progress:
                    pass
        elif (in_memory := self._store.hot_manifest(digest)) is not None:
            # It was verified when it came there.
            await self._store.put_manifest(holder, in_memory)
        else:
            await self._manifests.get(holder, digest)
