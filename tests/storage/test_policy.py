"""The eviction policy: what it decides, and that it decides the same on the catalog as in the simulator."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from benchmarks.eviction.policies import MemoryQueues
from benchmarks.eviction.traces import SKEWED, Figures, synthetic
from mirror.manifests import OCI_MANIFEST, Descriptor
from mirror.names import Digest
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.maintenance.policy import Queue, evicted, next_victim, spared


def names(queues: MemoryQueues[str], capacity: int) -> list[str]:
    """All that would go, in order."""
    gone = []
    while (victim := next_victim(queues, capacity)) is not None:
        queues.remove(victim.key)
        evicted(queues, victim, capacity)
        gone.append(victim.key)
    return gone


def test_what_is_asked_for_once_goes_before_what_is_asked_for_again() -> None:
    """However long ago that was; and each further use, up to three, is one more round."""
    queues: MemoryQueues[str] = MemoryQueues()
    for name in ("thrice", "twice", "once", "newest"):
        queues.add(name, 10)
    for name, uses in (("thrice", 3), ("twice", 2), ("newest", 0)):
        for _ in range(uses):
            queues.use(name)
    assert next_victim(queues, 40) == next_victim(queues, 40)
    assert names(queues, 40) == ["once", "newest", "thrice", "twice"]


def test_what_comes_back_soon_enters_the_main_queue() -> None:
    """A ghost's return is a second use. Ghosts are kept for nine tenths of the cache's bytes, the oldest forgotten first."""
    queues: MemoryQueues[str] = MemoryQueues()
    for number in range(20):
        queues.add(f"{number}", 10)
    assert len(names(queues, 100)) == 20
    queues.add("19", 10)
    queues.add("0", 10)
    assert queues.size(Queue.MAIN) == 10
    assert queues.size(Queue.SMALL) == 10
    assert queues.ghost_size(Queue.SMALL) == 80


def test_what_must_stay_goes_round() -> None:
    """A victim that cannot go is asked about again only after the others."""
    queues: MemoryQueues[str] = MemoryQueues()
    for name in ("pinned", "other"):
        queues.add(name, 10)
    victim = next_victim(queues, 20)
    assert victim is not None
    assert victim.key == "pinned"
    spared(queues, victim)
    assert names(queues, 20) == ["other", "pinned"]


@pytest.mark.parametrize("seed", range(3))
def test_the_catalog_evicts_what_the_simulator_evicts(tmp_path: Path, seed: int) -> None:
    """The same requests, a restart in their midst: the same blobs go, in the same order."""
    trace = synthetic(SKEWED, seed)[:3000]
    capacity = Figures.of(trace).working_set // 10
    digests = {blob: Digest.of(str(blob).encode()) for blob, _ in trace}
    catalog = Catalog(tmp_path)
    memory: MemoryQueues[str] = MemoryQueues()
    went: list[str] = []
    for number, (blob, size) in enumerate(trace):
        digest, name = digests[blob], str(digests[blob])
        if number == len(trace) // 2:
            catalog.close()
            catalog = Catalog(tmp_path)
        if memory.use(name):
            catalog.touch({digest: time.time()})
        elif size <= capacity:
            while sum(map(memory.size, Queue)) + size > capacity:
                with catalog.changing():
                    expected, victim = next_victim(memory, capacity), next_victim(catalog.queues, capacity)
                    assert expected is not None
                    assert victim is not None
                    assert victim == expected
                    memory.remove(expected.key)
                    evicted(memory, expected, capacity)
                    catalog.drop(Digest.parse(victim.key))
                    evicted(catalog.queues, victim, capacity)
                went.append(victim.key)
            memory.add(name, size)
            catalog.add(digest, size)
            assert catalog.totals()[0] == sum(map(memory.size, Queue))
            assert [catalog.queues.ghost_size(queue) for queue in Queue] == [memory.ghost_size(queue) for queue in Queue]
            assert catalog.queues.adaptation() == memory.adaptation()
    assert len(went) > 500
    catalog.close()


def test_the_totals_are_those_of_the_rows(tmp_path: Path) -> None:
    """Whatever is added twice, turns out to be a manifest, moves or is dropped."""
    catalog = Catalog(tmp_path)
    blobs = [Digest.of(bytes([number])) for number in range(4)]
    for blob in (*blobs, blobs[0]):
        catalog.add(blob, 100)
    catalog.add_manifest(Descriptor(OCI_MANIFEST, blobs[1], 100), [blobs[0]])
    with catalog.changing():
        catalog.queues.to_main(str(blobs[0]), 0)
    catalog.forget([blobs[2]], lambda _: True)
    assert catalog.totals() == (300, 3)
    assert [catalog.queues.size(queue) for queue in Queue] == [100, 100]
    catalog.close()


def test_a_catalog_of_the_time_of_lru_is_taken_over(tmp_path: Path) -> None:
    """Its rows, tags and totals; the least recently used is the oldest of the small queue."""
    old = sqlite3.connect(tmp_path / "content.sqlite")
    old.executescript(
        """
        CREATE TABLE content (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT, used REAL NOT NULL) WITHOUT ROWID;
        CREATE INDEX content_used ON content (media_type IS NOT NULL, used);
        CREATE TABLE total (one INTEGER PRIMARY KEY CHECK (one = 1), bytes INTEGER NOT NULL, blobs INTEGER NOT NULL);
        INSERT INTO total VALUES (1, 0, 0);
        CREATE TRIGGER content_in AFTER INSERT ON content BEGIN
            UPDATE total SET bytes = bytes + new.size, blobs = blobs + 1; END;
        CREATE TRIGGER content_out AFTER DELETE ON content BEGIN
            UPDATE total SET bytes = bytes - old.size, blobs = blobs - 1; END;
        """
    )
    recent, least, manifest = (Digest.of(name) for name in (b"recent", b"least", b"manifest"))
    with old:
        old.executemany(
            "INSERT INTO content VALUES (?, ?, ?, ?)",
            [(str(recent), 10, None, 2e9), (str(least), 20, None, 1e9), (str(manifest), 5, OCI_MANIFEST, 1e9)],
        )
    old.close()
    for _ in range(2):
        catalog = Catalog(tmp_path)
        assert catalog.totals() == (35, 3)
        assert catalog.manifest_type(manifest) == OCI_MANIFEST
        assert [catalog.queues.size(queue) for queue in Queue] == [30, 0]
        victim = next_victim(catalog.queues, 100)
        assert victim is not None
        assert victim.key == str(least)
        catalog.close()
