"""Two processes on one cache directory, whose clients ask different registries for one blob: as within a process, bytes are shared; trust and fate are not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from tests.downloads.test_suppliers import CASES, MIB, SIZE, fail_always, of_healthy, of_other, outcome, served_by_the_healthy
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Length, Rate, Scripted, Status


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    """The registry that has the faults."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def mirrors(start: StartMirror, upstream: Scripted, other: Scripted) -> tuple[Mirror, Mirror]:
    """Two mirrors on one directory: each opens the files for itself, so their locks exclude each other as those of two processes do."""
    registries = {"docker.io": {"endpoints": [upstream.url]}, "other.example": {"endpoints": [other.url]}}
    return await start(settings={"registries": registries}), await start(settings={"registries": registries})


@pytest.mark.parametrize("name", CASES)
async def test_a_registry_that_leads_in_one_process_holds_no_other_registrys_clients_in_another(
    mirrors: tuple[Mirror, Mirror], upstream: Scripted, other: Scripted, name: str
) -> None:
    """Whatever it does, they get the whole blob from their own registry, which sends the bytes once and is asked by HEAD once.

    Wrong bytes are found out at the end only: who has read them by then is cut short, and gets the whole blob with the next request.
    """
    one, two = mirrors
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    fail_always(other, blob, name)
    theirs = asyncio.create_task(one.get(of_other(blob)))
    await until(lambda: other.count("GET", str(blob)) > 0)
    await served_by_the_healthy(two, upstream, blob, data, name)
    other.heal()
    assert outcome(await asyncio.wait_for(theirs, PATIENCE), data) in CASES[name].first


@pytest.mark.parametrize("name", CASES)
async def test_a_registry_that_joins_from_another_process_harms_no_download(
    mirrors: tuple[Mirror, Mirror], upstream: Scripted, other: Scripted, name: str
) -> None:
    """It is asked by HEAD, once; its answer is told to its own clients alone, and the download does not notice."""
    one, two = mirrors
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    fail_always(other, blob, name)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    ours = asyncio.create_task(one.get(of_healthy(blob)))
    await hold.reached.wait()
    theirs = asyncio.create_task(two.get(of_other(blob)))
    await until(lambda: other.count("HEAD", str(blob)) > 0)
    hold.release.set()
    got = await asyncio.wait_for(ours, PATIENCE)
    assert (got.cut, got.body) == (False, data)
    assert upstream.count("GET", str(blob)) == 1
    assert outcome(await asyncio.wait_for(theirs, PATIENCE), data) in CASES[name].joined


async def test_clients_of_one_repository_share_one_request_across_processes(
    mirrors: tuple[Mirror, Mirror], upstream: Scripted
) -> None:
    """The process that follows takes the size from the one that leads: the registry is not even asked by HEAD."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    first = asyncio.create_task(mirrors[0].get(of_healthy(blob)))
    await hold.reached.wait()
    async with mirrors[1].session.get(of_healthy(blob)) as response:
        assert response.content_length == SIZE
        hold.release.set()
        assert await response.read() == data
    assert (await first).body == data
    assert [asked.method for asked in upstream.asked if str(blob) in asked.path] == ["GET"]


async def test_a_reader_in_another_process_counts_where_nobody_else_reads(
    mirrors: tuple[Mirror, Mirror], upstream: Scripted, other: Scripted
) -> None:
    """The client that began the download has left: the one that reads along is helped by its own registry all the same."""
    one, two = mirrors
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    other.fail(str(blob), Rate(2000.0), times=40)
    async with one.session.get(of_other(blob)) as response:
        ours = asyncio.create_task(two.get(of_healthy(blob)))
        await until(lambda: upstream.count("HEAD", str(blob)) == 1)
        response.close()
    assert (await asyncio.wait_for(ours, PATIENCE)).body == data
    await one.until_cached(blob)
    assert upstream.sent[str(blob)] <= 1.2 * SIZE


async def test_both_registries_serve_one_download_across_processes(
    mirrors: tuple[Mirror, Mirror], upstream: Scripted, other: Scripted
) -> None:
    """The first one fails midway: the process that leads goes on with the other's, neither reader notices, and hardly a byte comes twice."""
    one, two = mirrors
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    hold = Hold(MIB)
    other.fail(str(blob), hold)
    other.fail(str(blob), Status(500), times=30)
    theirs = asyncio.create_task(one.get(of_other(blob)))
    await hold.reached.wait()
    ours = asyncio.create_task(two.get(of_healthy(blob)))
    assert [(await task).body for task in (theirs, ours)] == [data, data]
    assert (upstream.count("GET", str(blob)), upstream.count("HEAD", str(blob))) == (1, 1)
    assert upstream.sent[str(blob)] <= 1.2 * MIB
    hold.release.set()


@pytest.mark.parametrize("claimed", [SIZE * 2, SIZE // 2])
async def test_clients_of_the_right_registry_share_one_download_while_another_claims_a_wrong_size(
    mirrors: tuple[Mirror, Mirror], upstream: Scripted, other: Scripted, claimed: int
) -> None:
    """In both processes, at once: their registry sends the blob once, and it is cached."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    lie = Length(claimed)
    other.fail(str(blob), lie, times=40)
    held = Hold(MIB)
    upstream.fail(str(blob), held)
    other.rate = 2000.0
    async with mirrors[0].session.get(of_other(blob)) as theirs:
        assert theirs.content_length == claimed
        ours = [asyncio.create_task(mirror.get(of_healthy(blob))) for mirror in mirrors * 5]
        await held.reached.wait()
        held.release.set()
        for got in await asyncio.gather(*ours):
            assert (got.status, got.cut, got.body) == (200, False, data)
        assert upstream.count("GET", str(blob)) == 1
        assert upstream.count("HEAD", str(blob)) <= 2
        await mirrors[1].until_cached(blob)
        theirs.close()


async def test_the_end_of_a_blob_that_another_process_downloads_does_not_wait_for_the_rest(
    start: StartMirror, upstream: Scripted
) -> None:
    """Lazy pullers read a layer's last bytes first: the process that leads fetches them out of order, once."""
    one, two = [await start(settings={"upstream": {"stall_timeout": 60}}) for _ in range(2)]
    blob = upstream.add_blob(data := os.urandom(24 * MIB))
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    whole = asyncio.create_task(one.get(of_healthy(blob)))
    await hold.reached.wait()
    ends = await asyncio.gather(*(two.get(of_healthy(blob), Range="bytes=-1000") for _ in range(3)))
    assert [(end.status, end.body) for end in ends] == [(206, data[-1000:])] * 3
    assert not hold.release.is_set()
    hold.release.set()
    assert (await whole).body == data
    # Not what upstream has sent: some of that is in the kernel's buffers when a connection's last bytes are left to another one.
    ranges = [asked.range for asked in upstream.asked if asked.range is not None]
    assert [wanted for wanted in ranges if wanted.endswith(f"-{len(data) - 1}")] == [f"bytes={len(data) - 1000}-{len(data) - 1}"]
    assert (len(upstream.asked) - len(ranges), upstream.count("HEAD")) == (1, 0)
