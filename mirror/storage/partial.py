"""The interface of a download in progress, as `Store.partial` returns it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mirror.names import Digest, Repository
from mirror.storage.extents import Extents
from mirror.storage.slices import Part

if TYPE_CHECKING:
    from hashlib import _Hash


class Partial(Protocol):
    """A download in progress: the bytes of a blob that were received so far, at their offsets.

    One holder at a time, among all processes, *leads*: only the leader writes. The others *follow*: they read the same bytes as they are written. The bytes survive
    the process, and the lead is free again when its holder dies. The caller of `Store.partial` closes it. Methods that are not `async` do not block.
    """

    digest: Digest

    @property
    def have(self) -> Extents:
        """The bytes that were received."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes of the whole blob; None while unknown."""
        ...

    @property
    def verified(self) -> bool:
        """True once the blob is complete and verified."""
        ...

    @property
    def inherited(self) -> bool:
        """True if an earlier leader wrote some of the bytes."""
        ...

    @property
    def current(self) -> bool:
        """False once the download has ended: committed (then `verified` is True), discarded or removed. Raises OSError if that cannot be determined."""
        ...

    @property
    def leader(self) -> Repository | None:
        """The repository that the leader downloads from first; None if unknown."""
        ...

    def announce(self, leader: Repository) -> None:
        """Publishes to other processes, as leader, the repository that it downloads from first. Forgets the sources added before."""
        ...

    def add_source(self, repository: Repository, size: int | None, *, told: bool) -> None:
        """Publishes to other processes that a repository has the blob, of `size` bytes, as its registry has `told`, or else another mirror. Does so once for each
        repository, and once more when its registry has told."""
        ...

    def take_sources(self) -> list[tuple[Repository, int | None, bool]]:
        """Returns the sources, as `add_source` takes them, that this or another process added since the last call."""
        ...

    def want(self, start: int, stop: int) -> None:
        """Asks the leader, as follower, for the bytes ``[start, stop)``, which a reader waits for. Does so once for each leader and range."""
        ...

    def take_wanted(self) -> list[tuple[int, int]]:
        """Returns the ranges passed to `want` since the last call, as of the last `take_sources`."""
        ...

    def attend(self, reading: bool) -> None:
        """Publishes to the leader, as follower, whether this process has readers. `close` ends it."""
        ...

    @property
    def attended(self) -> bool:
        """True, for the leader, if another process has readers."""
        ...

    def lead(self) -> bool:
        """Tries to take the lead, with the bytes of an earlier leader; returns whether it did. The result is valid only while `current`. Raises OSError."""
        ...

    def follow(self) -> None:
        """Reads what the leader has written since the last call."""
        ...

    def finished(self) -> bool:
        """Returns whether another download of the blob was committed meanwhile. Then this one, as leader, is given up, and reads come from the committed blob."""
        ...

    def restart(self) -> None:
        """Drops all bytes and starts over, as leader."""
        ...

    async def set_size(self, size: int) -> None:
        """Sets the size that upstream states, as leader. Evicts nothing: `write` makes room.

        Raises StorageFull if a blob of that size cannot be kept, whatever is evicted; OSError.
        """
        ...

    async def write(self, offset: int, data: bytes | memoryview, hasher: _Hash | None = None) -> None:
        """Writes bytes, as leader, and feeds them to `hasher`. Followers see them when it returns.

        Makes room for them in bounded steps. Raises StorageFull, OSError. If cancelled, it finishes writing first.
        """
        ...

    async def hash(self, hasher: _Hash, start: int, end: int) -> int:
        """Feeds the bytes ``[start, end)`` to `hasher`, as far as they were received. Returns the offset that it reached. Raises OSError."""
        ...

    def slice(self, start: int, end: int) -> Part:
        """Returns the bytes ``[start, end)``, which must have been received. Valid until `close`."""
        ...

    async def commit(self) -> None:
        """Turns the download into content, as leader, once its bytes are verified: atomic, durable and recorded in the catalog. The store is within
        its limit when this returns. Raises StorageFull if the blob could not be kept; `slice` still works."""
        ...

    def release(self) -> None:
        """Gives up the lead. The bytes stay for the next leader."""
        ...

    def discard(self) -> None:
        """Deletes the bytes, as leader. For followers the download is no longer `current`."""
        ...

    def close(self) -> None:
        """Closes it, and gives up the lead."""
        ...
