"""The interface of the queue of what has to be written to a bucket, and deleted from it, `DiskStore.outbox`.

Content and tags enter it in the transaction that makes them known, whichever process does, so that a crash loses none. It is bounded: where too much waits, the oldest entries are dropped, and
counted. Methods raise CatalogFailed unless they say otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mirror.names import Digest, Reference, Repository, Tag


@dataclass(frozen=True, slots=True)
class Entry:
    """What waits to be written."""

    id: int
    repository: Repository | None
    """Whose tag it is; None for content."""
    reference: Digest | Tag
    is_cached: bool
    """False for content that has gone meanwhile."""
    is_manifest: bool
    is_hosted: bool
    """True for content of a hosted repository."""
    is_wrong: bool
    """True if the bucket has other bytes than the digest says."""
    is_fetched: bool
    """True if it came from outside of the fleet, or in an archive, though this mirror may not be its home."""


class Outbox(Protocol):
    """See the module's docstring."""

    def lead(self) -> AbstractContextManager[None]:
        """Held by the process that writes to the bucket. Raises OSError if another one does."""
        ...

    async def take(self, count: int) -> list[Entry]:
        """Returns the `count` entries that have waited longest. They stay."""
        ...

    async def done(self, entry: Entry) -> None:
        """Removes an entry, unless there is a newer one of the same name by now."""
        ...

    async def put_back(self, entry: Entry) -> None:
        """Puts an entry behind all others, since it could not be written."""
        ...

    async def gone(self, repository: Repository | None = None) -> list[tuple[Repository, Reference]]:
        """Returns some of the manifests and tags that hosted repositories, or one of them, have no longer, and the bucket may have still."""
        ...

    async def is_gone(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether it is one of these."""
        ...

    async def forget_gone(self, repository: Repository, reference: Reference) -> None:
        """Notes that the bucket has not got it either."""
        ...

    async def note_wrong(self, digest: Digest) -> None:
        """Notes that the bucket has other bytes than a digest says: what is written of it replaces them. Never raises."""
        ...

    async def note_fetched(self, repository: Repository | None, reference: Reference) -> None:
        """Notes that content, or with a `repository` what a tag means, comes from outside of the fleet: call it before that is known here. Never raises."""
        ...

    async def counts(self) -> tuple[int, int]:
        """Returns how many entries wait, and how many were dropped since the last call in any process."""
        ...
