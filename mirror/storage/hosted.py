"""The interface of the part of a store that keeps what was pushed: hosted repositories, `Store.hosted`.

A hosted repository *has* the blobs and manifests that were pushed or mounted to it, and nothing else, whatever else the store has. What it has is never evicted; it
is kept as long as a tag, an index or a subject names it, and for a while longer (see `HostedRules`).

Whatever a method has returned without an error is on the disk, and no power cut takes it back. What one process changes, the others read at once.

Failures: all methods raise CatalogFailed, and StorageFull where the disk is full.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mirror.manifests import Manifest
from mirror.names import Digest, Repository, Tag
from mirror.storage.settings import HostedRules

MOST_DESCRIBED = 4 * 1024 * 1024
"""Bytes of JSON of the descriptors of a manifest's referrers that have annotations."""


@dataclass(frozen=True, slots=True)
class PushedManifest:
    """A manifest as it was pushed, and what it says."""

    manifest: Manifest
    children: frozenset[Digest]
    """Everything that it names."""
    needed: frozenset[Digest]
    """What its repository must have."""
    subject: Digest | None
    described: dict[str, Any]
    """Its descriptor in the list of its subject's referrers."""
    sizes: Mapping[Digest, int] = field(default_factory=dict)
    """What it says of the sizes in bytes of what is needed, where that must be true."""


@dataclass(frozen=True, slots=True)
class HostedUsage:
    """Bytes: of what the repositories have, of uploads in progress, and what both may take; None without a limit."""

    content: int
    uploads: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class HostedCollected:
    """What a collection removed, or would: tags as ``REPOSITORY:TAG`` that retention does not keep, how many manifests and blobs of repositories, the bytes of
    content that no repository has any more, and uploads that nobody continues."""

    tags: tuple[str, ...]
    manifests: int
    blobs: int
    size: int
    uploads: int


class Upload(Protocol):
    """An upload in progress. Its bytes are on the disk, so any process can continue it. The caller of `HostedStore` closes it."""

    id: str

    @property
    def size(self) -> int:
        """How many bytes have been received."""
        ...

    async def write(self, data: Sequence[bytes]) -> None:
        """Appends bytes. Raises HostedFull, LimitReached, StorageFull, OSError."""
        ...

    async def rewind(self, size: int) -> None:
        """Drops all bytes but the first `size`."""
        ...

    async def commit(self, digest: Digest, who: str) -> None:
        """Turns the upload into content that its repository has. Raises DigestInvalid if the bytes are not what the digest says (they stay), HostedFull."""
        ...

    async def discard(self) -> None:
        """Deletes the bytes."""
        ...

    def close(self) -> None: ...


class HostedStore(Protocol):
    """See the module's docstring."""

    @property
    def active(self) -> bool:
        """True if repositories can live here."""
        ...

    def covers(self, repository: Repository) -> bool:
        """Returns whether a repository lives here."""
        ...

    def take(self, rules: HostedRules) -> None:
        """Puts other rules in force at once. What was pushed stays, also in repositories that live here no longer."""
        ...

    # ------------------------------------------------------------------ uploads

    async def begin(self, repository: Repository, whose: str) -> Upload:
        """Begins an upload, of which the caller is the only writer. `whose` it is counts: one client may have so many that are not ended, and so many bytes of
        them. Raises HostedFull, LimitReached."""
        ...

    async def resume(self, repository: Repository, upload: str, *, write: bool = True) -> Upload:
        """Returns an upload by its id; to `write`, as its only writer. Raises UploadUnknown, UploadBusy."""
        ...

    async def check_room(self, size: int) -> None:
        """Returns if `size` bytes more, which a client announces, could be kept. Nothing is evicted for them: `Upload.write` makes room as they come. Raises
        HostedFull, StorageFull."""
        ...

    # ------------------------------------------------------------------ content

    async def has(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether a repository has something."""
        ...

    async def touch(self, repository: Repository, digest: Digest) -> bool:
        """Like `has`, and what it has is kept for a while, since a push is going to name it."""
        ...

    async def mount(self, repository: Repository, digest: Digest, who: str) -> bool:
        """Gives content that is here to a repository. Returns False if it is not here. Raises HostedFull."""
        ...

    async def put_manifest(
        self, repository: Repository, pushed: PushedManifest, tags: Collection[str], who: str, *, served: bool = True
    ) -> None:
        """Keeps a manifest, and what tags mean from now on, which the history records: that clients get it by them at once, if `served`; else when
        `note_ruled` says so. Raises ReferenceUnknown, ManifestInvalid, TagImmutable, HostedFull."""
        ...

    async def note_ruled(self, repository: Repository, tag: Tag, pushed: Digest, when: float, held_until: float | None) -> None:
        """Records what guards have decided on a tag: until when what it means is held back, or that clients get it from `when` on. Not if it means
        something else by now."""
        ...

    async def check_complete(self) -> None:
        """Returns if what a repository lacks here is nowhere else. Raises MirrorError while it may come back."""
        ...

    async def tags(self, repository: Repository, after: str = "", count: int | None = None) -> list[str]:
        """Returns the tags after one, in ASCII order, `count` of them at most."""
        ...

    async def referrers(self, repository: Repository, subject: Digest) -> list[dict[str, Any]]:
        """Returns the descriptors of the manifests whose subject is this one; the longest without annotations where all are more than MOST_DESCRIBED."""
        ...

    async def delete_tag(self, repository: Repository, tag: str) -> bool:
        """Deletes a tag; what it meant stays. Returns False if there is none. Raises Pinned, TagImmutable."""
        ...

    async def delete_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Deletes a manifest and the tags that mean it. Returns False if there is none. Raises Pinned, TagImmutable."""
        ...

    async def delete_blob(self, repository: Repository, digest: Digest) -> bool:
        """Takes a blob from a repository. Returns False if it has none. Raises InUse if one of its manifests names it."""
        ...

    # ------------------------------------------------------------------ upkeep

    async def usage(self) -> HostedUsage: ...

    async def collect(self) -> HostedCollected:
        """Deletes tags that no rule keeps, then what nothing names any more, and uploads that nobody continues. `Store.collect` does so too."""
        ...
