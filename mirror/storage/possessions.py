"""The interface of the part of a store that knows which repository has what."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from mirror.names import Digest, Reference, Repository


class Possessions(Protocol):
    """A manifest proves nothing about what it names: whoever made it may name any digest, at least as that of a layer that registries do not have."""

    async def holders(self, digest: Digest) -> frozenset[Repository]:
        """Returns all repositories that are known to have content: their registry gave it or said so, an archive brought it, a tag of theirs meant it, or it was
        pushed to them. Not those that have no more than a manifest that names it."""
        ...

    async def told_holders(self, digest: Digest) -> frozenset[Repository]:
        """Returns those of them whose registry gave it or said so."""
        ...

    async def note_holder(self, repository: Repository, digests: Collection[Digest], *, told: bool) -> None:
        """Notes that a repository has content: its registry has `told` so, or an archive has brought it."""
        ...

    async def note_brought(self, repository: Repository | None, references: Collection[Reference]) -> None:
        """Notes that an archive brings content, or with a `repository` what tags mean, before that is known to be its own: nobody else writes it to a bucket."""
        ...

    async def is_named(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether a cached manifest that a repository has names something."""
        ...
