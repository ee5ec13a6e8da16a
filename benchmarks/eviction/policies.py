"""The policies that are compared, each on dictionaries. The adaptive S3-FIFO is the mirror's own code, mirror/storage/disk/maintenance/policy.py.

A policy gets each request and returns whether it is a hit. It holds at most `capacity` bytes, and does not know future requests.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol

from benchmarks.eviction.traces import Name
from mirror.storage.disk.maintenance.policy import MOST_FREQUENT, Entry, K, Queue, evicted, next_victim, queue_of_new


class Policy(Protocol):
    """A simulated cache with an eviction policy."""

    def request(self, blob: Name, size: int) -> bool:
        """True for a hit. What is larger than the whole cache is not kept."""


class Lru:
    """The least recently used goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._sizes: OrderedDict[Name, int] = OrderedDict()
        self._held = 0

    def request(self, blob: Name, size: int) -> bool:
        if blob in self._sizes:
            self._sizes.move_to_end(blob)
            return True
        if size <= self._capacity:
            while self._held + size > self._capacity:
                self._held -= self._sizes.popitem(last=False)[1]
            self._sizes[blob] = size
            self._held += size
        return False


@dataclass(eq=False)
class _Node:
    blob: Name
    size: int
    visited: bool = False
    newer: _Node | None = None
    older: _Node | None = None


class Sieve:
    """A hand goes from old to new over a queue that is never reordered: what has been visited since it last came by stays (Zhang et al., NSDI 2024)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._nodes: dict[Name, _Node] = {}
        self._newest: _Node | None = None
        self._oldest: _Node | None = None
        self._hand: _Node | None = None
        self._held = 0

    def request(self, blob: Name, size: int) -> bool:
        node = self._nodes.get(blob)
        if node is not None:
            node.visited = True
            return True
        if size <= self._capacity:
            while self._held + size > self._capacity:
                self._evict()
            node = self._nodes[blob] = _Node(blob, size, older=self._newest)
            if self._newest is not None:
                self._newest.newer = node
            self._newest = node
            self._oldest = self._oldest or node
            self._held += size
        return False

    def _evict(self) -> None:
        node = self._hand or self._oldest
        while node is not None and node.visited:
            node.visited = False
            node = node.newer or self._oldest
        assert node is not None
        self._hand = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._newest = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._oldest = node.newer
        del self._nodes[node.blob]
        self._held -= node.size


class MemoryQueues(Generic[K]):
    """The queues that mirror/storage/disk/maintenance/policy.py works on: what mirror/storage/disk/catalog/queues.py is in SQLite."""

    def __init__(self) -> None:
        self._queues: tuple[OrderedDict[K, int], ...] = (OrderedDict(), OrderedDict())
        self._sizes = [0, 0]
        self._uses: dict[K, int] = {}
        self._ghosts: tuple[OrderedDict[K, int], ...] = (OrderedDict(), OrderedDict())
        self._ghost_sizes = [0, 0]
        self._adaptation = 0

    def size(self, queue: Queue) -> int:
        return self._sizes[queue]

    def oldest(self, queue: Queue) -> Entry[K] | None:
        for blob, size in self._queues[queue].items():
            return Entry(blob, size, queue, self._uses[blob])
        return None

    def to_main(self, key: K, frequency: int) -> None:
        size = self._take(key)
        self._queues[Queue.MAIN][key] = size
        self._sizes[Queue.MAIN] += size
        self._uses[key] = frequency

    def remove(self, key: K) -> None:
        self._take(key)
        del self._uses[key]

    def _take(self, key: K) -> int:
        queue = Queue.SMALL if key in self._queues[Queue.SMALL] else Queue.MAIN
        size = self._queues[queue].pop(key)
        self._sizes[queue] -= size
        return size

    def add_ghost(self, key: K, size: int, queue: Queue) -> None:
        self._ghosts[queue][key] = size
        self._ghost_sizes[queue] += size

    def take_ghost(self, key: K) -> Queue | None:
        for queue in Queue:
            size = self._ghosts[queue].pop(key, None)
            if size is not None:
                self._ghost_sizes[queue] -= size
                return queue
        return None

    def ghost_size(self, queue: Queue) -> int:
        return self._ghost_sizes[queue]

    def drop_oldest_ghost(self, queue: Queue) -> None:
        self._ghost_sizes[queue] -= self._ghosts[queue].popitem(last=False)[1]

    def adaptation(self) -> int:
        return self._adaptation

    def adapt(self, size: int) -> None:
        self._adaptation = size

    # ------------------------------------------------------------------ what the catalog does in the mirror

    def add(self, key: K, size: int) -> None:
        queue = queue_of_new(self, key, size)
        self._queues[queue][key] = size
        self._sizes[queue] += size
        self._uses[key] = 0

    def use(self, key: K) -> bool:
        if key not in self._uses:
            return False
        self._uses[key] = min(MOST_FREQUENT, self._uses[key] + 1)
        return True


class S3Fifo:
    """S3-FIFO whose small queue adapts: the mirror's."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._queues: MemoryQueues[Name] = self._make_queues()

    def _make_queues(self) -> MemoryQueues[Name]:
        return MemoryQueues()

    def request(self, blob: Name, size: int) -> bool:
        queues = self._queues
        if queues.use(blob):
            return True
        if size <= self._capacity:
            while sum(map(queues.size, Queue)) + size > self._capacity:
                victim = next_victim(queues, self._capacity)
                assert victim is not None
                queues.remove(victim.key)
                evicted(queues, victim, self._capacity)
            queues.add(blob, size)
        return False


class _FixedQueues(MemoryQueues[K]):
    """The small queue stays a tenth of the cache, and the main queue has no ghosts."""

    def add_ghost(self, key: K, size: int, queue: Queue) -> None:
        if queue is Queue.SMALL:
            super().add_ghost(key, size, queue)

    def adapt(self, size: int) -> None:
        pass


class FixedS3Fifo(S3Fifo):
    """S3-FIFO as published."""

    def _make_queues(self) -> MemoryQueues[Name]:
        return _FixedQueues()


class TinyLfu:
    """W-TinyLFU in bytes (Einziger et al., ACM TOS 18.3, 2022): what leaves a window of 1 % enters the main space only where it is more frequent than what it would drive out.

    Those are taken together (the paper's "aggregated victims"), or, with `each`, one by one. The counts are exact here, which a sketch's are not, and halved
    after each ten cache sizes of traffic. The main space is a segmented LRU, 80 % of it protected.
    """

    def __init__(self, capacity: int, each: bool = False) -> None:
        self._window_capacity = capacity // 100
        self._main_capacity = capacity - self._window_capacity
        self._each = each
        self._window: OrderedDict[Name, int] = OrderedDict()
        self._probation: OrderedDict[Name, int] = OrderedDict()
        self._protected: OrderedDict[Name, int] = OrderedDict()
        self._window_size = self._main_size = self._protected_size = 0
        self._counts: dict[Name, int] = defaultdict(int)
        self._until_halved = 10 * capacity

    def request(self, blob: Name, size: int) -> bool:
        self._count(blob, size)
        if blob in self._window:
            self._window.move_to_end(blob)
        elif blob in self._protected:
            self._protected.move_to_end(blob)
        elif blob in self._probation:
            self._protect(blob)
        else:
            if size <= self._window_capacity + self._main_capacity:
                self._window[blob] = size
                self._window_size += size
                while self._window_size > self._window_capacity:
                    candidate, bytes_ = self._window.popitem(last=False)
                    self._window_size -= bytes_
                    self._offer(candidate, bytes_)
            return False
        return True

    def _count(self, blob: Name, size: int) -> None:
        self._counts[blob] += 1
        self._until_halved -= size
        if self._until_halved < 0:
            self._until_halved = 10 * (self._window_capacity + self._main_capacity)
            self._counts = defaultdict(int, {name: count // 2 for name, count in self._counts.items() if count > 1})

    def _protect(self, blob: Name) -> None:
        self._protected[blob] = self._probation.pop(blob)
        self._protected_size += self._protected[blob]
        while self._protected_size > 0.8 * self._main_capacity:
            demoted, size = self._protected.popitem(last=False)
            self._protected_size -= size
            self._probation[demoted] = size

    def _offer(self, candidate: Name, size: int) -> None:
        if size > self._main_capacity:
            return
        victims: list[Name] = []
        freed = 0
        for victim, bytes_ in self._in_order():
            if self._main_size - freed + size <= self._main_capacity:
                break
            victims.append(victim)
            freed += bytes_
        counts = [self._counts[victim] for victim in victims]
        if self._counts[candidate] < (max(counts, default=0) if self._each else sum(counts)):
            # It stays out, and the first of them gets out of the next one's way.
            segment = self._probation if victims[0] in self._probation else self._protected
            segment.move_to_end(victims[0])
            return
        for victim in victims:
            if victim in self._probation:
                del self._probation[victim]
            else:
                self._protected_size -= self._protected.pop(victim)
        self._main_size += size - freed
        self._probation[candidate] = size

    def _in_order(self) -> Iterator[tuple[Name, int]]:
        yield from self._probation.items()
        yield from self._protected.items()


POLICIES: dict[str, Callable[[int], Policy]] = {
    "LRU": Lru,
    "SIEVE": Sieve,
    "S3-FIFO": FixedS3Fifo,
    "S3-FIFO, adaptive": S3Fifo,
    "W-TinyLFU": TinyLfu,
    "W-TinyLFU, each": lambda capacity: TinyLfu(capacity, each=True),
}
