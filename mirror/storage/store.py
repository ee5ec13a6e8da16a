"""The interface of a store, which keeps everything that the mirror caches.

A store holds *content* by digest (blobs and manifests, each verified before it is here), *names* (what a tag meant when upstream was last asked, which
repository has a manifest, pins), and *documents* (lists from upstream). Downloads in progress are *partials*: they become content by `Partial.commit`.

Two stores implement it, `mirror.storage.disk.store.DiskStore` and `mirror.storage.memory.MemoryStore`; tests/storage/test_conformance.py holds both to
what is promised here. A store is an async context manager. All methods belong to the event loop that entered it.

What is atomic, across the tasks and processes that share a store: `put_manifest` and `Partial.commit` (the content is here whole or not at all), `set_tag`,
`drop_tag`, `pin`, `unpin`, `set_listed`, `set_document`, and `delete` (no eviction and no other deletion comes between the names and the content).

Failures. Content is *absent* if it is known not to be there. If the disk does not give it for another reason (no descriptors, an I/O error, no permission), it is not absent:
`open` and `size` raise StorageUnreadable, and nothing is forgotten. The other methods that a pull needs do not raise if the disk or the catalog fails: they return
what an empty store would, so that upstream is asked. The methods that people call (`pin`, `unpin`, `delete`, `collect`, `verify`, the inventory) raise CatalogFailed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol, Self

from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.hosted import HostedCollected, HostedStore
from mirror.storage.partial import Partial
from mirror.storage.possessions import Possessions
from mirror.storage.sightings import Block, HeldTag, Move, Released, Ruled, Sighting
from mirror.storage.slices import Reader

if TYPE_CHECKING:
    from types import TracebackType

Restore = Callable[[Repository, Digest, bool], Awaitable[None]]
"""Fetches damaged content again from a repository that has it; True for a manifest. Raises MirrorError."""


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What clients get by a tag. The registry was last asked at `checked`, in seconds since the epoch."""

    descriptor: Descriptor
    checked: float
    held_until: float | None = None
    """Until when something else is held back that the registry says the tag means; None if nothing is, infinite if no time ends it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What another process has changed. With `deleted`, images or tags have gone, whichever; `tags` were checked, and may mean something else.
    With `ruled`, something was blocked or released by hand, perhaps by this process."""

    deleted: bool
    tags: tuple[tuple[Repository, Tag], ...]
    ruled: bool = False


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image of a list. Times in seconds since the epoch."""

    list: str
    repository: Repository
    reference: Reference
    since: float
    """Since when it has been in the list."""
    ran: float | None
    """When the last pull that succeeded began; None if none has."""
    tried: float | None
    """When the last pull began; None if there was none."""
    failures: int
    """Pulls in a row that have failed."""
    fault: str
    """Why the last one failed; empty if it did not."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The result of a deletion: `freed` bytes belonged to no other image, `kept` bytes stay because other images have them too."""

    digest: Digest
    tags: tuple[str, ...]
    freed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Gone:
    """How much was removed, or would be. `size` in bytes."""

    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection removed, by reason."""

    expired: Gone
    orphans: Gone
    unfinished: Gone
    """Downloads that were given up a week ago."""
    evicted: Gone
    hosted: HostedCollected


class Question(Enum):
    """What a process asks upstream while it holds a lock."""

    CHECK = auto()
    """Whether a tag has changed, and then for its new manifest."""
    FETCH = auto()
    """For a manifest, or for what a tag means."""


class State(Enum):
    """The result of verifying content."""

    WHOLE = auto()
    DAMAGED = auto()
    MISSING = auto()
    UNREADABLE = auto()
    """It may be whole: the disk does not give it now. Nothing is removed."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The verdict on one content of `size` bytes. `holder` is a repository that has it, None if none is known."""

    digest: Digest
    size: int
    state: State
    holder: Repository | None = None
    is_manifest: bool = False
    fault: str = ""
    """Why it is UNREADABLE."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The size of a store in bytes, and the number of its blobs and manifests."""

    size: int
    entries: int
    limit: int


class Store(Possessions, Protocol):
    """See the module's docstring for what is atomic and how failures show."""

    @property
    def hosted(self) -> HostedStore:
        """What was pushed."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, restore: Restore) -> None:
        """Starts the work in the background: repairs after a crash, expiry, the scrub, recording uses."""
        ...

    def start_counting(self) -> None:
        """Starts to record how the store is used; `start` does so too."""
        ...

    # ------------------------------------------------------------------ content

    async def open(self, digest: Digest) -> Reader | None:
        """Returns a reader of a cached blob, which stays readable to its end whatever happens; None if it is not cached.

        Returns at once, unless the file was modified since it was verified: it is verified again then. Raises StorageUnreadable.
        """
        ...

    def size(self, digest: Digest) -> int | None:
        """Returns the size of cached content in bytes; None if it is not cached. Raises StorageUnreadable."""
        ...

    def verify_behind(self, digest: Digest) -> None:
        """Starts to verify a cached blob again, in the background. A damaged one is removed, so that it is fetched again."""
        ...

    def partial(self, digest: Digest, claimed: int | None = None) -> Partial:
        """Returns the download of a blob, and begins one if there is none. With `claimed`, a separate one of the same blob, for those whose registry says that it
        has so many bytes while the other download goes by another size. Raises OSError."""
        ...

    def hot_manifest(self, digest: Digest) -> Manifest | None:
        """Returns a manifest that is in memory, None if it is not."""
        ...

    async def manifest(self, digest: Digest) -> Manifest | None:
        """Returns a cached manifest, verified again if it comes from the disk; None if it is not cached or cannot be read."""
        ...

    async def manifests_of(self, images: Sequence[tuple[Repository, Reference]]) -> list[Manifest | None]:
        """Returns the manifests of many images, as `tag` and `manifest` do one by one. Those below them are read ahead: `manifest` returns them from memory."""
        ...

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, told: bool = True) -> None:
        """Keeps a verified manifest, and that `repository` has it, as its registry has `told`, or else an archive; only in memory where the disk will not take it.

        The digest of a signed schema 1 manifest names its content without the signatures, which are kept beside it.
        """
        ...

    async def naming(self, blob: Digest, since: float) -> list[Digest]:
        """The cached manifests that name a blob and were used after `since`, in seconds since the epoch."""
        ...

    async def statistics(self) -> Statistics: ...

    async def shortage(self) -> str:
        """Returns what leaves less room for more content, the disk or the limit, and what to do: a clause for people."""
        ...

    # ------------------------------------------------------------------ names

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Returns what a tag meant when upstream was last asked; None if it never was, or the tag is gone."""
        ...

    async def set_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, seen: bool = True) -> None:
        """Sets what clients get by a tag. If `seen`, the tag means that by somebody's word, and the history records it; otherwise `note_tag` has recorded what it
        means, and only that clients get it now is added, if they do."""
        ...

    async def drop_tag(self, repository: Repository, tag: Tag, gone: float | None = None) -> None:
        """Forgets what a tag meant. A pin keeps what it meant last. `gone` is when the registry said that there is no such tag, which the history records."""
        ...

    async def note_tag(self, repository: Repository, tag: Tag, found: Descriptor, when: float) -> None:
        """Records in the history that the registry says what a tag means, without giving that to clients."""
        ...

    async def history(self, repository: Repository, tag: Tag) -> list[Sighting]:
        """Returns what a tag has meant, oldest first: at most the latest 1000. It is kept when the content goes. Empty where the catalog fails."""
        ...

    async def first_seen(self, tags: Sequence[tuple[Repository, Tag, Digest]]) -> list[float | None]:
        """Returns when each tag was first known to mean a digest, in seconds since the epoch: the same however often it was checked, or moved away and back.
        For a hosted repository, when the tag was last pushed. None if it was never known, or the catalog fails."""
        ...

    async def tags_of(self, repository: Repository, digest: Digest) -> list[str]:
        """Returns the tags of a repository that have ever meant a digest. Empty where the catalog fails."""
        ...

    async def moves(self, count: int) -> list[Move]:
        """Returns the latest moves of tags, newest first. Raises CatalogFailed."""
        ...

    async def held(self, repository: Repository | None = None) -> list[HeldTag]:
        """Returns the tags, or those of one repository, of which something is held back; those that end first come first. Raises CatalogFailed."""
        ...

    async def release(self, repository: Repository, tag: Tag, released: Released, only: Digest | None = None) -> Digest | None:
        """Records that what a tag means at its registry may be served now. Returns that; None if the tag was never seen, is gone, or means something else than `only`.
        Raises CatalogFailed."""
        ...

    def count_ruling(self, rule: str, verdict: str, repository: Repository, reference: Reference, reason: str) -> None:
        """Counts what a guard's rule has done. Recorded from time to time."""
        ...

    async def rulings(self, count: int) -> list[Ruled]:
        """Returns what guards have done in the last 30 days, the latest first. Raises CatalogFailed."""
        ...

    async def blocks(self) -> list[Block]:
        """Returns what was blocked by hand, oldest first. Raises CatalogFailed."""
        ...

    async def block(self, block: Block) -> None:
        """Blocks a digest. All processes know about a second later, by `watch`. Raises CatalogFailed."""
        ...

    async def unblock(self, digest: Digest) -> bool:
        """Ends a block. Returns False if there was none. Raises CatalogFailed."""
        ...

    async def tags(self, repository: Repository, meaning: Digest | None = None) -> list[str]:
        """The known tags of a repository: all, or those that mean one digest."""
        ...

    async def repositories(self) -> list[Repository]:
        """Every repository with a cached manifest, by name."""
        ...

    async def holder(self, digest: Digest) -> Repository | None:
        """Returns a repository that is known to have content: it sent the manifest, or a manifest that names the content. None if there is none."""
        ...

    async def document(self, key: str) -> dict[str, Any] | None:
        """Returns what was stored under a key; None if there is nothing, or it has been evicted."""
        ...

    async def set_document(self, key: str, value: dict[str, Any]) -> None:
        """Stores a JSON object: a list that upstream gave, and the time."""
        ...

    def lock(self, question: Question, key: str) -> AbstractAsyncContextManager[None]:
        """Held by one process at a time for each key: who has it asks upstream. Within a process it does not exclude: SingleFlight does that.

        A task that holds a FETCH waits for no other lock; one that holds a CHECK may wait for a FETCH. Raises AssertionError otherwise.
        """
        ...

    def asking_peer(self, digest: Digest) -> AbstractContextManager[None]:
        """Shows, while it is open, that a blob is asked of another mirror of the fleet: `asks_peer` of all processes is True then."""
        ...

    def asks_peer(self, digest: Digest) -> bool:
        """Returns whether any process asks another mirror of the fleet for a blob now."""
        ...

    def watch(self) -> AsyncGenerator[Change, None]:
        """Yields what other processes have changed, about a second later, so that callers drop what they remember of it. Never ends. For one caller."""
        ...

    # ------------------------------------------------------------------ what people do

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        """Protects an image from eviction and expiry, with all of it that is cached now or later. Returns False if its manifest is not cached yet."""
        ...

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        """Lets an image be evicted again. Returns False if it was not pinned by this reference."""
        ...

    async def set_listed(self, lists: Mapping[str, Collection[tuple[Repository, Reference]] | None]) -> None:
        """Replaces the images of all lists, by the lists' names; where None is given, a list keeps those that it has. What is listed is protected as by `pin`.

        A pin by hand is another matter: neither takes the other's place. Raises CatalogFailed.
        """
        ...

    async def listed(self) -> list[ListedImage]:
        """Returns the images of all lists, in the order in which they were listed. Raises CatalogFailed."""
        ...

    async def note_listed(
        self, name: str, repository: Repository, reference: Reference, tried: float, fault: str, attached: Collection[Digest] = ()
    ) -> None:
        """Records how the pull of a listed image went that began at `tried`; `fault` is empty if it succeeded.

        The manifests that are `attached` to the image, such as signatures, are protected with it; if the pull failed, those that were before stay so too.
        Raises CatalogFailed.
        """
        ...

    def lead_lists(self) -> AbstractContextManager[None]:
        """Held by the process that pulls the images of lists. Raises OSError if another one does."""
        ...

    async def delete(self, repository: Repository, reference: Reference, *, force: bool = False) -> Deleted:
        """Deletes an image: its name, and the content that no other image has; by digest, all tags of the repository that mean it.

        What is being read stays readable to its end. Raises ManifestUnknown where nothing is known by that name; Pinned if it is pinned or listed, unless by `force`.
        """
        ...

    async def collect(self, *, dry_run: bool = False) -> Collected:
        """Removes what has expired, what belongs to no image, abandoned downloads, and what is above the limit. A dry run only returns what it would remove."""
        ...

    async def contents(self) -> Mapping[Digest, int]:
        """Returns everything cached, with sizes in bytes."""
        ...

    def verify(self, contents: Mapping[Digest, int], *, remove: bool) -> AsyncGenerator[Verified, None]:
        """Reads content again, and yields a verdict on each. With `remove`, damaged or missing content is no longer cached when its verdict is yielded."""
        ...

    # ------------------------------------------------------------------ usage

    async def set_status(self, value: Any) -> None:
        """Sets what the other processes read about this one, a JSON value that counts for some seconds; None removes it. A disk that fails costs only that."""
        ...

    async def statuses(self) -> list[Any]:
        """Returns the statuses of all processes, this one included."""
        ...

    def count_pull(self, repository: Repository, reference: Reference) -> None:
        """Counts a client's request for a manifest. Recorded from time to time."""
        ...
