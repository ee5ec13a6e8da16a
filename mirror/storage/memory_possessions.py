"""The part of the store in memory that knows which repository has what."""

from __future__ import annotations

from collections.abc import Collection

from mirror.names import Digest, Reference, Repository


class MemoryPossessions:
    """Implements that part of `mirror.storage.store.Store`."""

    def __init__(self) -> None:
        super().__init__()
        self.possessions: dict[Digest, dict[Repository, bool]] = {}
        """By content, the repositories that have it, and whether their registry has said so."""

    def possess(self, repository: Repository, digest: Digest, *, told: bool) -> None:
        """Notes that a repository has content."""
        holders = self.possessions.setdefault(digest, {})
        holders[repository] = told or holders.get(repository, False)

    async def note_holder(self, repository: Repository, digests: Collection[Digest], *, told: bool) -> None:
        for digest in digests:
            self.possess(repository, digest, told=told)

    async def note_brought(self, repository: Repository | None, references: Collection[Reference]) -> None:
        """No bucket is behind memory."""

    async def told_holders(self, digest: Digest) -> frozenset[Repository]:
        return frozenset(holder for holder, told in self.possessions.get(digest, {}).items() if told)
