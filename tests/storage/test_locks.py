"""The locks of a cache directory: their order, and that one that is closed or fails leaves nothing held."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from mirror import wiring
from mirror.cache.lists import Lists
from mirror.cache.tags import Tags
from mirror.config import load
from mirror.downloads.active import ActiveDownloads
from mirror.downloads.flights import Flights
from mirror.names import Repository, Tag
from mirror.storage.disk import locks
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.inventory_executor import InventoryExecutor
from mirror.storage.disk.catalog.usage import Usage
from mirror.storage.disk.content import Content
from mirror.storage.disk.locks import KeyedFileLock, Rank, hold
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Upkeep
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


@pytest.mark.parametrize(("first", "second"), list(itertools.product(Rank, Rank)))
def test_what_is_waited_for_is_taken_in_order(tmp_path: Path, first: Rank, second: Rank) -> None:
    """A thread that holds a lock waits for none of its rank or an earlier one: no two threads can wait for each other."""
    with hold(tmp_path / "1", first):
        if second > first:
            with hold(tmp_path / "2", second):
                pass
        else:
            with pytest.raises(AssertionError, match=second.name), hold(tmp_path / "2", second):
                pass
            with hold(tmp_path / "2", second, wait=False):
                pass
    with hold(tmp_path / "1", first, wait=False):
        pass


async def test_a_pull_an_eviction_and_a_deletion_take_them_in_order(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is really taken, and waited for, beside each other in one run of a mirror: only locks that the table names."""
    taken: list[tuple[str, Rank]] = []

    def recorded(path: Path, rank: Rank, *, wait: bool = True) -> Any:
        taken.append((path.name, rank))
        return hold(path, rank, wait=wait)

    for module in ("mending", "scrub", "eviction"):
        monkeypatch.setattr(f"mirror.storage.disk.maintenance.{module}.hold", recorded)
    mirror: Mirror = await start(max_size="1MiB", scrub_rate="1MB")
    for number in range(3):
        image = upstream.add_image("library/app", str(number), layers=[bytes([number]) * 400_000])
        await mirror.get(f"/v2/app/manifests/{number}")
        await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
        await mirror.until_cached(image.layers[0])
    await mirror.mended()
    await mirror.stop()
    async with DiskStore(mirror.directory, Upkeep(2**40)) as store:
        await store.delete(Repository("docker.io", "library/app"), Tag("2"))
    names = dict(taken)
    assert names == {"mend.lock": Rank.MENDING, "scrub.lock": Rank.SCRUB, "eviction.lock": Rank.EVICTION}
    for name in names:
        assert name in (locks.__doc__ or "")


async def test_a_key_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    """The second waits for the first, and not for other keys; whoever leaves by an error leaves the key free."""
    one, two = KeyedFileLock(tmp_path / "keys"), KeyedFileLock(tmp_path / "keys")
    order: list[str] = []
    entered = asyncio.Event()

    async def second() -> None:
        entered.set()
        async with two.take("a"):
            order.append("second")

    async def first() -> None:
        async with one.take("a"):
            waiting.append(asyncio.create_task(second()))
            await entered.wait()
            async with two.take("b"):
                order.append("other key")
            order.append("first")
            raise ZeroDivisionError

    waiting: list[asyncio.Task[None]] = []
    with pytest.raises(ZeroDivisionError):
        await first()
    await waiting[0]
    assert order == ["other key", "first", "second"]
    one.close()
    two.close()
    async with one.take("a"):
        pass


@pytest.mark.parametrize("failing", ["Flights", "Tags", "Content", "Usage", "ActiveDownloads"])
async def test_closing_goes_on_when_a_part_fails_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Each part of the cache and the store is closed, whatever another raises; the error is raised in the end."""
    closed: list[str] = []
    parts: list[Any] = [Flights, Tags, Lists, ActiveDownloads, Content, Usage, CatalogExecutor, InventoryExecutor]
    for part in parts:

        async def close(self: Any, name: str = part.__name__, original: Any = part.aclose) -> None:
            await original(self)
            closed.append(name)
            if name == failing:
                raise RuntimeError("cannot close")

        monkeypatch.setattr(part, "aclose", close)
    settings = load(
        None, {}, {"cache": {"dir": str(tmp_path)}, "registries": {"docker.io": {"endpoints": ["http://127.0.0.1:1"]}}}
    )
    with pytest.raises(RuntimeError, match="cannot close"):
        async with wiring.opened(settings):
            pass
    assert sorted(closed) == sorted(part.__name__ for part in parts)
