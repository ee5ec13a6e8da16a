"""Which blob is evicted next: S3-FIFO, counted in bytes, with a small queue that adapts.

S3-FIFO is by Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. New blobs enter a small queue. A blob that nobody asks for again while it is there is
evicted, and its name is kept as a *ghost*. A blob that is asked for again moves to the main queue, and so does one that returns while its name is a ghost. The main queue
goes round: each use, of three at most, lets a blob stay for another round.

A fixed small queue of a tenth of the cache is worse than LRU where blobs are asked for again only after a long time. So its share adapts, as in ARC (Megiddo and Modha, FAST 2003):
names evicted from the main queue are kept too. The return of a small queue's ghost says that the small queue was too small, the return of a main queue's ghost
that it was too large.

This module decides only. The queues are a table shared by processes (mirror/storage/disk/catalog/queues.py), and dictionaries in the simulator (benchmarks/eviction). docs/eviction.md has
the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

MOST_FREQUENT = 3
"""Uses that are counted; more make no difference."""

_SMALL_SHARE = 0.1
"""The small queue's share of the cache at first."""
_LEAST_SHARE, _MOST_SHARE = 0.02, 0.9
"""The bounds of its adaptation."""
_GHOST_SHARE = 0.9
"""How much of each queue's past is remembered: ghosts whose blobs had that share of the cache's bytes."""

K = TypeVar("K")


class Queue(IntEnum):
    """The two queues."""

    SMALL = 0
    MAIN = 1


@dataclass(frozen=True, slots=True)
class Entry(Generic[K]):
    """A cached blob: its size in bytes, its queue, and its uses since it entered that queue, or since it last went round."""

    key: K
    size: int
    queue: Queue
    frequency: int


class Queues(Protocol[K]):
    """What the policy works on. Entries enter at the young end and are considered for eviction at the old end."""

    def size(self, queue: Queue) -> int:
        """Bytes in a queue."""

    def oldest(self, queue: Queue) -> Entry[K] | None:
        """The entry at the old end."""

    def to_main(self, key: K, frequency: int) -> None:
        """Moves an entry to the young end of the main queue."""

    def add_ghost(self, key: K, size: int, queue: Queue) -> None:
        """Keeps the name of an entry that was evicted from a queue."""

    def take_ghost(self, key: K) -> Queue | None:
        """Forgets a name; returns the queue that it was evicted from, None if it was not kept."""

    def ghost_size(self, queue: Queue) -> int:
        """Bytes of the blobs whose names are kept for a queue."""

    def drop_oldest_ghost(self, queue: Queue) -> None:
        """Forgets the oldest name of a queue."""

    def adaptation(self) -> int:
        """Bytes by which the small queue may exceed its initial size; negative if it is to be smaller."""

    def adapt(self, size: int) -> None:
        """Sets the adaptation."""


def queue_of_new(queues: Queues[K], key: K, size: int) -> Queue:
    """Returns the queue that a new blob enters, and adapts the small queue where the blob is a ghost. `size` in bytes."""
    ghost = queues.take_ghost(key)
    if ghost is None:
        return Queue.SMALL
    other = Queue.MAIN if ghost is Queue.SMALL else Queue.SMALL
    # As in ARC: a ghost of the shorter list is the stronger evidence.
    step = size * max(1, queues.ghost_size(other) // max(1, queues.ghost_size(ghost)))
    queues.adapt(queues.adaptation() + (step if ghost is Queue.SMALL else -step))
    return Queue.MAIN


def _small_capacity(queues: Queues[K], capacity: int) -> int:
    """Bytes that the small queue may have, within its bounds."""
    first = int(_SMALL_SHARE * capacity)
    wanted = first + queues.adaptation()
    allowed = max(int(_LEAST_SHARE * capacity), min(int(_MOST_SHARE * capacity), wanted))
    if allowed != wanted:
        queues.adapt(allowed - first)
    return allowed


def next_victim(queues: Queues[K], capacity: int) -> Entry[K] | None:
    """Returns the blob to evict next, None if there is none. It stays in its queue until `evicted` or `spared` is called. `capacity` in bytes."""
    small_capacity = _small_capacity(queues, capacity)
    while True:
        small, main = queues.oldest(Queue.SMALL), queues.oldest(Queue.MAIN)
        if small is not None and (main is None or queues.size(Queue.SMALL) > small_capacity):
            if small.frequency == 0:
                return small
            queues.to_main(small.key, 0)
        elif main is not None:
            if main.frequency == 0:
                return main
            queues.to_main(main.key, main.frequency - 1)
        else:
            return None


def evicted(queues: Queues[K], entry: Entry[K], capacity: int) -> None:
    """Records that a victim was evicted. The caller has removed it from its queue."""
    queues.add_ghost(entry.key, entry.size, entry.queue)
    while queues.ghost_size(entry.queue) > _GHOST_SHARE * capacity:
        queues.drop_oldest_ghost(entry.queue)


def spared(queues: Queues[K], entry: Entry[K]) -> None:
    """Records that a victim must stay, because it is being read or pinned: it moves to the young end of the main queue."""
    queues.to_main(entry.key, 0)
