"""The interface of a store: everything that is kept, and all that may be asked of it.

A store holds *content* by digest (blobs and manifests, each verified before it is here), *names* (what a tag meant when upstream was last asked, which
repository has a manifest, pins), and *documents* (lists from upstream). Downloads in progress are *partials*: they become content by `Partial.commit`.

Two stores implement it, `mirror.storage.disk.store.DiskStore` and `mirror.storage.memory.MemoryStore`; tests/storage/test_conformance.py holds both to
what is promised here. A store is an async context manager. All methods belong to the event loop that entered it.

What is atomic, across the tasks and processes that share a store: `put_manifest` and `Partial.commit` (the content is here whole or not at all), `set_tag`,
`drop_tag`, `pin`, `unpin`, `set_document`, and `delete` (no eviction and no other deletion comes between the names and the content).

Failures. *Absent* is what is known not to be there. What a disk will not read for another reason (no descriptors, an I/O error, no permission) is not absent:
`open` and `size` raise StorageUnreadable then, and nothing is forgotten. The other methods that a pull needs do not raise for a disk or catalog that fails:
they answer as an empty store would, so that upstream is asked. What people do (pins, `delete`, `collect`, `verify`, the inventory) raises CatalogFailed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol, Self

from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.extents import Extents
from mirror.storage.slices import Part, Reader

if TYPE_CHECKING:
    from hashlib import _Hash
    from types import TracebackType

Restore = Callable[[Repository, Digest, bool], Awaitable[None]]
"""Fetches damaged content again from a repository that has it; True for a manifest. Raises MirrorError."""


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag meant at `checked`, in seconds since the epoch."""

    descriptor: Descriptor
    checked: float


@dataclass(frozen=True, slots=True)
class Pin:
    """An image that is never evicted. `digest` is what it last meant, None while that is unknown; `since` in seconds since the epoch."""

    repository: Repository
    reference: Reference
    digest: Digest | None
    since: float


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did. `freed` bytes belonged to no other image; `kept` bytes stay because other images have them too."""

    digest: Digest
    tags: tuple[str, ...]
    freed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Gone:
    """How much has gone, or would. `size` in bytes."""

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


class Question(Enum):
    """What a process asks upstream while it holds a lock."""

    CHECK = auto()
    """Whether a tag has changed, and then for its new manifest."""
    FETCH = auto()
    """For a manifest, or for what a tag means."""


class State(Enum):
    """What verifying has found."""

    WHOLE = auto()
    DAMAGED = auto()
    MISSING = auto()
    UNREADABLE = auto()
    """It may be whole: the disk does not give it now. Nothing is removed."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The verdict on one content of `size` bytes. `holder` is a repository that has it, None where none is known."""

    digest: Digest
    size: int
    state: State
    holder: Repository | None = None
    is_manifest: bool = False
    fault: str = ""
    """Why it is UNREADABLE."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a store's size in bytes, and of the number of its blobs and manifests."""

    size: int
    entries: int
    limit: int


class Partial(Protocol):
    """A download in progress: the bytes of a blob that are here so far, at their offsets.

    One holder at a time, in whatever process, *leads*: it alone writes. The others *follow*: they read the same bytes as they come. The bytes survive the
    process, and the lead is free again when its holder dies. Whoever opened a partial closes it. The methods that are not `async` do not block.
    """

    digest: Digest

    @property
    def have(self) -> Extents:
        """The bytes that are here."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes of the whole blob; None while that is not known."""
        ...

    @property
    def verified(self) -> bool:
        """True once the blob is complete and is what its digest says."""
        ...

    @property
    def inherited(self) -> bool:
        """True where some of the bytes were written by an earlier leader."""
        ...

    @property
    def current(self) -> bool:
        """False once it is over for everybody: committed (`verified` tells), discarded, or cleared away. Raises OSError where that cannot be told."""
        ...

    @property
    def leader(self) -> Repository | None:
        """The repository that the leader downloads from first; None where that is not known."""
        ...

    def announce(self, leader: Repository) -> None:
        """Tells the other processes, as leader, which repository it downloads from first. Forgets what `add_source` has noted before."""
        ...

    def add_source(self, repository: Repository, size: int | None) -> None:
        """Tells the other processes, as leader or follower, that a repository says it has the blob, of `size` bytes; once for each repository."""
        ...

    def take_sources(self) -> list[tuple[Repository, int | None]]:
        """What `add_source` has noted since the last call, in this process or another."""
        ...

    def want(self, start: int, stop: int) -> None:
        """Tells the leader, as follower, that a reader waits for the bytes ``[start, stop)``."""
        ...

    def take_wanted(self) -> list[tuple[int, int]]:
        """What `want` has told since the last call, as far as `take_sources` has read."""
        ...

    def attend(self, reading: bool) -> None:
        """Tells the leader, as follower, whether somebody reads in this process. Until `close` at the longest."""
        ...

    @property
    def attended(self) -> bool:
        """True, for the leader, where somebody reads in another process."""
        ...

    def lead(self) -> bool:
        """Tries to take the lead, with the bytes of an earlier leader. Where it is over (see `current`), the answer means nothing. Raises OSError."""
        ...

    def follow(self) -> None:
        """Takes note of what the leader has written since."""
        ...

    def finished(self) -> bool:
        """True where the blob was finished by somebody else meanwhile: as leader, gives up this download, and reads the finished blob from now on."""
        ...

    def restart(self) -> None:
        """Forgets all bytes and begins again, as leader."""
        ...

    async def set_size(self, size: int) -> None:
        """Notes the size of the blob, as upstream tells it, as leader. Raises StorageFull where so much cannot be kept, whatever is evicted; OSError.

        Nothing is evicted for it: room is made as bytes come.
        """
        ...

    async def write(self, offset: int, data: bytes | memoryview, hasher: _Hash | None = None) -> None:
        """Writes bytes, as leader, and feeds them to `hasher`. Followers see them when it returns.

        Makes room for them in bounded steps. Raises StorageFull, OSError. When cancelled, ends first.
        """
        ...

    async def hash(self, hasher: _Hash, start: int, end: int) -> int:
        """Feeds the bytes ``[start, end)`` that are here to `hasher`. Returns the offset that it came to. Raises OSError."""
        ...

    def slice(self, start: int, end: int) -> Part:
        """The bytes ``[start, end)``, which must be here. Stays good until `close`."""
        ...

    async def commit(self) -> None:
        """Makes a content of it, as leader, once its bytes are verified. The one place that does: atomic, durable, entered into the catalog, and the
        store is within its limit again when it returns. Raises StorageFull where it could not be kept; `slice` goes on working."""
        ...

    def release(self) -> None:
        """Gives up the lead; the bytes stay for whoever goes on."""
        ...

    def discard(self) -> None:
        """Throws the bytes away, as leader. Followers see that it is over."""
        ...

    def close(self) -> None:
        """Lets go of it, and of the lead."""
        ...


class Store(Protocol):
    """See the module's docstring for what is atomic and how failures show."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, restore: Restore) -> None:
        """Begins the work in the background: repairs after a crash, expiry, scrub, writing down uses."""
        ...

    def start_counting(self) -> None:
        """Begins to write down how much the store is used; `start` does it too."""
        ...

    # ------------------------------------------------------------------ content

    async def open(self, digest: Digest) -> Reader | None:
        """A reader of a cached blob, which stays readable to its end whatever happens; None where it is not cached.

        Does not wait for anything unless the file was touched since it was verified: it is verified anew then. Raises StorageUnreadable.
        """
        ...

    def size(self, digest: Digest) -> int | None:
        """The size of cached content in bytes; None where it is not cached. Raises StorageUnreadable."""
        ...

    def verify_behind(self, digest: Digest) -> None:
        """Begins to verify a cached blob anew; nobody waits. What is damaged is removed, so that it is fetched again."""
        ...

    def partial(self, digest: Digest, claimed: int | None = None) -> Partial:
        """The download of a blob, begun where there is none. With `claimed`, a separate one of the same blob, for those whose registry says that it
        has so many bytes while the other download goes by another size. Raises OSError."""
        ...

    def hot_manifest(self, digest: Digest) -> Manifest | None:
        """A manifest that is in memory."""
        ...

    async def manifest(self, digest: Digest) -> Manifest | None:
        """A cached manifest, verified anew when it comes from the disk; None where it is not cached or cannot be read."""
        ...

    async def manifest_type(self, digest: Digest) -> str | None:
        """The media type of a cached manifest; None where there is none of that digest."""
        ...

    async def put_manifest(self, repository: Repository, manifest: Manifest) -> None:
        """Keeps a verified manifest, and that `repository` has it; only in memory where the disk will not take it.

        The digest of a signed schema 1 manifest names its content without the signatures, which are kept beside it.
        """
        ...

    async def naming(self, blob: Digest, since: float) -> list[Digest]:
        """The cached manifests that name a blob and were used after `since`, in seconds since the epoch."""
        ...

    async def statistics(self) -> Statistics: ...

    # ------------------------------------------------------------------ names

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What a tag meant when upstream was last asked; None where it never was, or the tag is gone."""
        ...

    async def set_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None: ...

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        """Forgets what a tag meant. A pin of it goes on holding what it meant last."""
        ...

    async def tags(self, repository: Repository) -> list[str]:
        """The known tags of a repository."""
        ...

    async def repositories(self) -> list[Repository]:
        """Every repository with a cached manifest, by name."""
        ...

    async def holder(self, digest: Digest) -> Repository | None:
        """Returns a repository that is known to have content: a manifest that it gave, or what a manifest names that it has. None where there is none."""
        ...

    async def document(self, key: str) -> dict[str, Any] | None:
        """What was stored under a key; it may have been dropped since."""
        ...

    async def set_document(self, key: str, value: dict[str, Any]) -> None:
        """Stores a JSON object: a list that upstream gave, and when."""
        ...

    def lock(self, question: Question, key: str) -> AbstractAsyncContextManager[None]:
        """Held by one process at a time for each key: who has it asks upstream. Within a process it does not exclude: SingleFlight does that.

        A task that holds a FETCH waits for no other lock; one that holds a CHECK may wait for a FETCH. Raises AssertionError otherwise.
        """
        ...

    def watch(self) -> AsyncGenerator[None, None]:
        """Yields after another process has deleted images: what is remembered of tags may be wrong then. Never ends."""
        ...

    # ------------------------------------------------------------------ what people do

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        """Keeps an image from eviction and expiry, what is cached of it now and what will be. False where its manifest is not cached yet."""
        ...

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        """Gives an image back to eviction. False where it was not pinned by that very reference."""
        ...

    async def pins(self) -> list[Pin]:
        """All pins, by name."""
        ...

    async def delete(self, repository: Repository, reference: Reference, *, force: bool = False) -> Deleted:
        """Deletes an image: its name, and the content that no other image has; by digest, all tags of the repository that mean it.

        What is being read stays readable to its end. Raises ManifestUnknown where nothing is known by that name; Pinned, unless by `force`.
        """
        ...

    async def collect(self, *, dry_run: bool = False) -> Collected:
        """Removes what has expired, what belongs to no image, what was given up, and what is above the limit; or tells what it would remove."""
        ...

    async def contents(self) -> Mapping[Digest, int]:
        """Everything cached, with sizes in bytes."""
        ...

    def verify(self, contents: Mapping[Digest, int], *, remove: bool) -> AsyncGenerator[Verified, None]:
        """Reads content again, and yields the verdict on each. With `remove`, what is damaged or missing is no longer cached when its verdict comes."""
        ...

    # ------------------------------------------------------------------ usage

    async def announce(self, value: Any) -> None:
        """Tells the other processes something about this one, as a JSON value, for some seconds; None takes it back. A disk that fails costs only that."""
        ...

    async def announcements(self) -> list[Any]:
        """Returns what all processes have announced lately, this one included."""
        ...

    def count_pull(self, repository: Repository, reference: Reference) -> None:
        """Counts a client's request for a manifest. Written down from time to time."""
        ...
