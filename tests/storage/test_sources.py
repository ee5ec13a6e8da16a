"""How the processes that share a download tell each other who has the blob, and who reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.names import Digest, Repository
from mirror.storage.disk.store import DiskStore
from mirror.storage.memory import MemoryStore
from mirror.storage.partial import Partial
from mirror.storage.settings import Upkeep
from mirror.storage.store import Store

ONE, TWO, THREE = (Repository(name, "library/app") for name in ("docker.io", "ghcr.io", "host.lan:5000"))
DIGEST = Digest.of(b"blob")


@pytest.fixture(params=["disk", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = DiskStore(tmp_path, Upkeep(1_000_000)) if request.param == "disk" else MemoryStore(1_000_000)
    async with made:
        yield made


@pytest.fixture
async def partials(store: Store) -> AsyncIterator[tuple[Partial, Partial]]:
    """A leader and a follower."""
    leader, follower = store.partial(DIGEST), store.partial(DIGEST)
    assert leader.lead()
    leader.announce(ONE)
    yield leader, follower
    leader.close()
    follower.close()


async def test_sources_are_known_to_both(partials: tuple[Partial, Partial]) -> None:
    """Each is told once, with its size where that is known, and again when its registry has told what another mirror had said; the leader's name too."""
    leader, follower = partials
    assert follower.take_sources() == []
    assert follower.leader == ONE
    leader.add_source(ONE, 5, told=True)
    follower.add_source(TWO, None, told=False)
    follower.add_source(THREE, 7, told=True)
    assert leader.take_sources() == [(ONE, 5, True), (TWO, None, False), (THREE, 7, True)]
    assert follower.take_sources() == [(ONE, 5, True), (TWO, None, False), (THREE, 7, True)]
    follower.add_source(TWO, None, told=False)
    leader.add_source(ONE, 5, told=False)
    assert (leader.take_sources(), follower.take_sources()) == ([], [])
    follower.add_source(TWO, 6, told=True)
    assert leader.take_sources() == follower.take_sources() == [(TWO, 6, True)]


async def test_a_new_leader_begins_without_the_sources_of_the_last(partials: tuple[Partial, Partial]) -> None:
    """They may have been told days ago; whoever still follows tells them again."""
    leader, follower = partials
    leader.add_source(ONE, 5, told=True)
    assert follower.take_sources() == [(ONE, 5, True)]
    leader.release()
    assert follower.lead()
    follower.announce(TWO)
    assert leader.take_sources() == []
    assert leader.leader == TWO
    leader.add_source(ONE, 5, told=True)
    assert follower.take_sources() == [(ONE, 5, True)]


async def test_the_leader_knows_whether_somebody_reads_elsewhere(store: Store, partials: tuple[Partial, Partial]) -> None:
    """As long as they say so, and no longer than until they close."""
    leader, follower = partials
    assert not leader.attended
    follower.attend(True)
    follower.attend(True)
    assert leader.attended
    follower.attend(False)
    assert not leader.attended
    third = store.partial(DIGEST)
    third.attend(True)
    assert leader.attended
    third.close()
    assert not leader.attended


async def test_the_leader_is_told_which_bytes_are_waited_for(partials: tuple[Partial, Partial]) -> None:
    """Once; a new leader is told anew."""
    leader, follower = partials
    follower.want(100, 200)
    leader.take_sources()
    assert leader.take_wanted() == [(100, 200)]
    assert leader.take_wanted() == []
    follower.want(300, 400)
    leader.release()
    assert follower.lead()
    follower.announce(TWO)
    follower.take_sources()
    assert follower.take_wanted() == []


async def test_a_download_of_another_size_is_a_separate_one(store: Store) -> None:
    """Both may be led at once; the content is there when one of them is committed."""
    shared, separate = store.partial(DIGEST), store.partial(DIGEST, 4)
    assert shared.lead()
    assert separate.lead()
    await separate.set_size(4)
    await separate.write(0, b"blob")
    assert (shared.have.total, shared.size) == (0, None)
    await separate.commit()
    assert store.size(DIGEST) == 4
    assert shared.current
    assert shared.finished()
    for partial in (shared, separate):
        partial.close()


@pytest.mark.parametrize(
    "text",
    [
        "has docker.io library/app 5\n",
        "told docker.io library/app 5\n",
        "lead docker.io UPPER\n",
        "has / a 5\nhas docker.io a x\nhas docker.io a " + "9" * 30 + "\n",
        "\xff\n\n",
        "lead docker.io library/app",
    ],
)
async def test_a_file_that_makes_no_sense_says_nothing(tmp_path: Path, text: str) -> None:
    """Sources without a leader, names and numbers that are none, a line without an end. What is written after it counts."""
    async with DiskStore(tmp_path, Upkeep(1_000_000)) as store:
        (tmp_path / "spool" / f"sha256-{DIGEST.hex}.sources").write_text(text, encoding="latin-1")
        partial = store.partial(DIGEST)
        assert (partial.take_sources(), partial.leader) == ([], None)
        assert partial.lead()
        partial.announce(ONE)
        partial.add_source(TWO, 5, told=False)
        assert (partial.take_sources(), partial.leader) == ([(TWO, 5, False)], ONE)
        partial.close()
