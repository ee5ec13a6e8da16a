"""The locks of a cache directory: their order, and that one that is closed or fails leaves nothing held."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror import locks, wiring
from mirror.cache.lists import Lists
from mirror.cache.tags import Tags
from mirror.config import load
from mirror.downloads.active import ActiveDownloads
from mirror.downloads.flights import Flights
from mirror.locks import WAITED_FOR, KeyedFileLock, Lock, attempt, wait
from mirror.names import Repository, Tag
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.catalog.inventory_executor import InventoryExecutor
from mirror.storage.disk.catalog.usage import Usage
from mirror.storage.disk.content import Content
from mirror.storage.disk.store import DiskStore
from mirror.storage.settings import Upkeep
from mirror.threads import ThreadPool
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted

ORDERS = list(itertools.product(WAITED_FOR, WAITED_FOR))


@contextlib.contextmanager
def refused(first: Lock, second: Lock) -> Iterator[None]:
    """Fails where `second` may not be waited for after `first`, and is, or the other way round."""
    if second > first:
        yield
    else:
        with pytest.raises(AssertionError, match=f"{second.name} is taken after {first.name}"):
            yield


@pytest.mark.parametrize(("first", "second"), ORDERS)
def test_locks_are_waited_for_in_order(tmp_path: Path, first: Lock, second: Lock) -> None:
    """A thread that holds one waits for neither it nor an earlier one, so no two can wait for each other. What is only tried has no order."""
    with wait(tmp_path / "1", first):
        with refused(first, second), wait(tmp_path / "2", second):
            pass
        with attempt(tmp_path / "3"):
            pass
    with attempt(tmp_path / "3"), wait(tmp_path / "2", second):
        pass


@pytest.mark.parametrize(("first", "second"), ORDERS)
async def test_the_order_holds_over_tasks_and_threads(tmp_path: Path, first: Lock, second: Lock) -> None:
    """What a task holds, its threads and the tasks that it waits for hold too; not those that go on after it."""
    keys, threads = KeyedFileLock(tmp_path / "keys"), ThreadPool(1)
    released = asyncio.Event()

    def in_a_thread() -> None:
        with refused(first, second), wait(tmp_path / "2", second):
            pass

    async def in_a_task() -> None:
        with refused(first, second):
            async with keys.take(second, "b"):
                pass

    async def later() -> None:
        await released.wait()
        async with keys.take(second, "c"):
            pass

    async with keys.take(first, "a"):
        await threads.run(in_a_thread)
        await asyncio.create_task(in_a_task())
        left = asyncio.create_task(later())
    released.set()
    await left
    keys.close()
    threads.close()


@pytest.mark.parametrize("lock", sorted(set(Lock) - set(WAITED_FOR)))
def test_the_others_are_never_waited_for(tmp_path: Path, lock: Lock) -> None:
    """So it does not matter what their holder waits for."""
    with pytest.raises(AssertionError, match=f"{lock.name} is never waited for"), wait(tmp_path / "1", lock):
        pass


def test_every_lock_is_in_the_table() -> None:
    """In the order of the enumeration, with the order of those that are waited for."""
    assert re.findall(r"^([A-Z]+) ", locks.__doc__ or "", re.MULTILINE) == [lock.name for lock in Lock]
    assert list(WAITED_FOR) == sorted(WAITED_FOR)


async def test_a_pull_an_eviction_and_a_deletion_take_them_in_order(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside each other in one run of a mirror: all that are waited for are taken, and no order is broken. Nobody changes a user here."""
    taken: set[Lock] = set()

    class Recorded(locks._Holding):
        def __init__(self, lock: Lock) -> None:
            taken.add(lock)
            super().__init__(lock)

    monkeypatch.setattr(locks, "_Holding", Recorded)
    mirror: Mirror = await start(max_size="1MiB", scrub_rate="1MB", tag_ttl=0)
    for number in range(3):
        image = upstream.add_image("library/app", str(number), layers=[bytes([number]) * 400_000])
        for _ in range(2):
            assert (await mirror.get(f"/v2/app/manifests/{number}")).status == 200
        await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
        await mirror.until_cached(image.layers[0])
    upstream.add_image("library/app", "0", layers=[b"new"])
    assert (await mirror.get("/v2/app/manifests/0")).status == 200
    await mirror.mended()
    await mirror.stop()
    async with DiskStore(mirror.directory, Upkeep(2**40)) as store:
        await store.delete(Repository("docker.io", "library/app"), Tag("2"))
    assert taken == set(WAITED_FOR) - {Lock.USERS}


async def test_a_key_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    """The second waits for the first, and not for other keys; whoever leaves by an error leaves the key free."""
    one, two = KeyedFileLock(tmp_path / "keys"), KeyedFileLock(tmp_path / "keys")
    order: list[str] = []
    held, entered = asyncio.Event(), asyncio.Event()

    async def second() -> None:
        await held.wait()
        entered.set()
        async with two.take(Lock.CHECK, "a"):
            order.append("second")

    async def first() -> None:
        waiting.append(asyncio.create_task(second()))
        async with one.take(Lock.CHECK, "a"):
            held.set()
            await entered.wait()
            async with two.take(Lock.FETCH, "b"):
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
    async with one.take(Lock.FETCH, "a"):
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
