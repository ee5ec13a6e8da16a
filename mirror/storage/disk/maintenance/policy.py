"""Which blob goes next: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), accounted in bytes.

New blobs enter a small queue, a tenth of the cache. One that nobody asks for again while it is there goes, and only its name is kept, as a *ghost*; one that is asked for
again moves to the main queue, and so does one that comes back while it is a ghost. The main queue goes round: a use lets a blob stay for another round, three at most.
So layers that are asked for once, two thirds of all, pass through a tenth of the cache instead of through all of it.

Only the decisions are here. The queues themselves are a table shared by processes (queues.py), and dictionaries in the simulator (benchmarks/eviction), which is
where the choice of this policy over others and its two shares come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

MOST_FREQUENT = 3
"""Uses that are counted; more make no difference."""

_SMALL_SHARE = 0.1
_GHOST_SHARE = 0.9

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
    """What the policy works on. Entries come in at the young end and are looked at from the old end."""

    def size(self, queue: Queue) -> int:
        """Bytes in a queue."""

    def oldest(self, queue: Queue) -> Entry[K] | None:
        """The one at the old end."""

    def to_main(self, key: K, frequency: int) -> None:
        """Moves an entry to the young end of the main queue."""

    def remove(self, key: K) -> None:
        """Drops an entry."""

    def add_ghost(self, key: K, size: int) -> None:
        """Keeps a name."""

    def take_ghost(self, key: K) -> bool:
        """Forgets a name; True where it was kept."""

    def ghost_size(self) -> int:
        """Bytes that the ghosts had."""

    def drop_oldest_ghost(self) -> None:
        """Forgets a name."""


def queue_of_new(queues: Queues[K], key: K) -> Queue:
    """Where a blob that has come enters."""
    return Queue.MAIN if queues.take_ghost(key) else Queue.SMALL


def next_victim(queues: Queues[K], capacity: int) -> Entry[K] | None:
    """The blob that should go next; None where there is none. It stays where it is until `evicted` or `spared` is told. `capacity` in bytes."""
    while True:
        small, main = queues.oldest(Queue.SMALL), queues.oldest(Queue.MAIN)
        if small is not None and (main is None or queues.size(Queue.SMALL) > _SMALL_SHARE * capacity):
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
    """Notes that a victim is gone."""
    queues.remove(entry.key)
    if entry.queue is Queue.SMALL:
        queues.add_ghost(entry.key, entry.size)
        while queues.ghost_size() > _GHOST_SHARE * capacity:
            queues.drop_oldest_ghost()


def spared(queues: Queues[K], entry: Entry[K]) -> None:
    """Notes that a victim must stay, since somebody reads or has pinned it: it goes round."""
    queues.to_main(entry.key, 0)
