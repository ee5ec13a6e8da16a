"""The interface of a download in progress, as a store gives it out: see mirror/storage/store.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mirror.names import Digest, Repository
from mirror.storage.extents import Extents
from mirror.storage.slices import Part

if TYPE_CHECKING:
    from hashlib import _Hash


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
        """Tells the leader, as follower, that a reader waits for the bytes ``[start, stop)``; once for each leader and stretch."""
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
