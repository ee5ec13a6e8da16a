"""Clients of different registries ask for one blob: its bytes are shared; trust and fate are not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from mirror.downloads.context import DownloadContext
from mirror.downloads.download import Stream
from mirror.downloads.suppliers import Suppliers
from mirror.errors import UpstreamUnreachable
from mirror.names import Digest, Repository
from tests.support.mirrors import Got, Mirror, StartMirror, read_to_end, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Corrupt, Cut, Delay, Fault, Hold, Length, Pending, Rate, Scripted, Status

MIB = 1024 * 1024
SIZE = 2 * MIB


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    """The registry that has the faults."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def mirror(start: StartMirror, upstream: Scripted, other: Scripted) -> Mirror:
    """A mirror of two registries: a healthy one, and other.example."""
    settings = {"registries": {"docker.io": {"endpoints": [upstream.url]}, "other.example": {"endpoints": [other.url]}}}
    started: Mirror = await start(settings=settings)
    return started


def of_healthy(blob: Digest) -> str:
    return f"/v2/docker.io/library/app/blobs/{blob}"


def of_other(blob: Digest) -> str:
    return f"/v2/other.example/any/blobs/{blob}"


@dataclass(frozen=True)
class Case:
    """A registry's fault, and what its own client may get: statuses of a whole answer, ``cut`` for one that ended early.

    A client that is still served when the fault is over, or the blob cached meanwhile, gets 200.
    """

    fault: Callable[[], Fault]
    first: set[object]
    joined: set[object]


CASES = {
    "drips": Case(lambda: Rate(2000.0), {200}, {200}),
    "hangs after headers": Case(lambda: Hold(0), {200, "cut"}, {200}),
    "hangs before headers": Case(lambda: Delay(60), {200, 503}, {200, 503}),
    "absent": Case(lambda: Status(404), {404}, {404}),
    "refuses": Case(lambda: Status(403), {403}, {403}),
    "fails": Case(lambda: Status(500), {200, 503}, {200, 503}),
    "cut": Case(lambda: Cut(1000), {200, "cut"}, {200}),
    "wrong bytes": Case(lambda: Corrupt(5), {"cut"}, {200}),
    "says more": Case(lambda: Length(SIZE * 2), {"cut", 503}, {"cut"}),
    "says less": Case(lambda: Length(SIZE // 2), {"cut", 503}, {"cut", 503}),
    "says more than can be cached": Case(lambda: Delay(0.5) & Length(2**50), {200, "cut", 503}, {200, "cut", 503}),
}


def outcome(got: Got, data: bytes) -> object:
    """Nobody ever gets a whole answer with other bytes."""
    if got.cut:
        return "cut"
    if got.status == 200:
        assert got.body == data
    return got.status


def fail_always(other: Scripted, blob: Digest, name: str) -> None:
    for method in ("GET", "HEAD"):
        other.fail(str(blob), *(CASES[name].fault() for _ in range(40)), method=method)


async def served_by_the_healthy(
    mirror: Mirror, upstream: Scripted, blob: Digest, data: bytes, name: str, then: Callable[[], object] = lambda: None
) -> None:
    """A client of the healthy registry gets the whole blob, whose bytes it sends once, and which is cached. `then` is called when it has its headers."""

    async def client() -> Got:
        async with mirror.session.get(of_healthy(blob)) as response:
            then()
            return await read_to_end(response)

    ours = await asyncio.wait_for(client(), PATIENCE)
    if name == "wrong bytes" and ours.cut:
        ours = await asyncio.wait_for(mirror.get(of_healthy(blob)), PATIENCE)
    assert (ours.status, ours.cut) == (200, False)
    assert ours.body == data
    assert ours.headers["Content-Length"] == str(SIZE)
    # Twice where this machine is too busy to read for a second: the missing bytes are asked for.
    assert upstream.count("GET", str(blob)) <= 2
    # Of wrong bytes from two registries nobody knows whose were wrong: where this one had helped already, all come once more.
    assert upstream.sent[str(blob)] <= (2.2 if name == "wrong bytes" else 1.2) * SIZE, [
        (a.method, a.range) for a in upstream.asked
    ]
    assert upstream.count("HEAD", str(blob)) <= 1
    await mirror.until_cached(blob)


@pytest.mark.parametrize("name", CASES)
async def test_a_registry_that_was_asked_first_holds_no_other_registrys_clients(
    mirror: Mirror, upstream: Scripted, other: Scripted, name: str
) -> None:
    """Whatever it does, they get the whole blob from their own, which sends the bytes once; what its own clients get is its own fault.

    Wrong bytes are found out at the end only: who has read them by then is cut short, and gets the whole blob with the next request.
    """
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    fail_always(other, blob, name)
    theirs = asyncio.create_task(mirror.get(of_other(blob)))
    await until(lambda: other.count("GET", str(blob)) > 0)
    await served_by_the_healthy(mirror, upstream, blob, data, name)
    other.heal()
    assert outcome(await asyncio.wait_for(theirs, PATIENCE), data) in CASES[name].first


@pytest.mark.parametrize("name", CASES)
async def test_a_registry_that_answers_after_a_client_of_another_has_its_headers(
    mirror: Mirror, upstream: Scripted, other: Scripted, name: str
) -> None:
    """It was asked first. The client goes on with what its own registry has said, and the blob is cached when it has got it."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    last = Pending()
    other.fail(str(blob), last & CASES[name].fault())
    fail_always(other, blob, name)
    theirs = asyncio.create_task(mirror.get(of_other(blob)))
    await last.reached.wait()
    await served_by_the_healthy(mirror, upstream, blob, data, name, last.release.set)
    other.heal()
    assert outcome(await asyncio.wait_for(theirs, PATIENCE), data) in CASES[name].first


@pytest.mark.parametrize("name", [name for name in CASES if name != "hangs before headers"])
async def test_a_registry_that_answers_before_that_of_another_client(
    mirror: Mirror, upstream: Scripted, other: Scripted, name: str
) -> None:
    """Its own client has an answer while the other one's registry has not answered yet: that one's client gets the whole blob, and it is cached."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    first, last = Pending(), Pending()
    other.fail(str(blob), first & CASES[name].fault())
    fail_always(other, blob, name)
    upstream.fail(str(blob), last, method="HEAD")

    async def client() -> Got:
        async with mirror.session.get(of_other(blob)) as response:
            last.release.set()
            return await read_to_end(response)

    theirs = asyncio.create_task(client())
    await first.reached.wait()
    ours = asyncio.create_task(served_by_the_healthy(mirror, upstream, blob, data, name))
    await last.reached.wait()
    first.release.set()
    await ours
    other.heal()
    assert outcome(await asyncio.wait_for(theirs, PATIENCE), data) in CASES[name].first


@pytest.mark.parametrize("name", CASES)
async def test_a_registry_that_joins_harms_no_download(mirror: Mirror, upstream: Scripted, other: Scripted, name: str) -> None:
    """It is asked by HEAD, once; its answer is told to its own clients alone, and the download does not notice."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    fail_always(other, blob, name)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    ours = asyncio.create_task(mirror.get(of_healthy(blob)))
    await hold.reached.wait()
    theirs = asyncio.create_task(mirror.get(of_other(blob)))
    await until(lambda: other.count("HEAD", str(blob)) > 0)
    if CASES[name].joined <= {403, 404}:
        # Once the download has ended, the blob is here and nobody is asked.
        await asyncio.wait({theirs}, timeout=PATIENCE)
    hold.release.set()
    got = await asyncio.wait_for(ours, PATIENCE)
    assert not got.cut
    assert got.body == data
    assert upstream.count("GET", str(blob)) == 1
    assert outcome(await asyncio.wait_for(theirs, PATIENCE), data) in CASES[name].joined


async def test_a_registry_that_fails_while_another_helps_is_not_replaced_a_second_time(
    start: StartMirror, upstream: Scripted, other: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that helps is fetching the missing bytes already, and is asked for them once."""
    caplog.set_level("INFO")
    registries = {"docker.io": {"endpoints": [upstream.url]}, "other.example": {"endpoints": [other.url]}}
    mirror = await start(settings={"registries": registries, "upstream": {"stall_timeout": 60}})
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    slow, helps = Hold(1000), Hold(MIB)
    other.fail(str(blob), slow & Cut(2000))
    other.fail(str(blob), Status(500), times=40)
    upstream.fail(str(blob), helps)
    theirs = asyncio.create_task(mirror.get(of_other(blob)))
    await slow.reached.wait()
    ours = asyncio.create_task(mirror.get(of_healthy(blob)))
    await helps.reached.wait()
    slow.release.set()
    await until(lambda: "one of 1 connections failed" in caplog.text or upstream.count("GET", str(blob)) > 1)
    helps.release.set()
    assert [(await task).body for task in (theirs, ours)] == [data, data]
    assert upstream.count("GET", str(blob)) == 1
    assert upstream.sent[str(blob)] <= SIZE


async def test_a_registry_that_is_being_asked_already_is_not_idle() -> None:
    """Before it has answered as well: no second connection is opened for the same bytes."""
    asked, answer = asyncio.Event(), asyncio.Event()

    class Busy:
        connections, ranges, single, least, throttled, capped = 1, True, False, 1, False, False

        def attend(self, wanted: bool) -> None: ...

        async def open(self, *_: object, **__: object) -> Stream:
            asked.set()
            await answer.wait()
            raise UpstreamUnreachable("refused")

    first, second = (DownloadContext(Repository("r.example", name), cast("Any", Busy()), {}) for name in ("one", "two"))
    suppliers = Suppliers(first)
    supplier, _ = suppliers.join(second)
    supplier.promise(SIZE)
    assert suppliers.idle(0.0, 1.0) is supplier
    opening = asyncio.create_task(suppliers.only(supplier).open())
    await asked.wait()
    assert suppliers.idle(0.0, 1.0) is None
    answer.set()
    with pytest.raises(UpstreamUnreachable):
        await opening
    assert supplier.streams == 0
    # It has failed: it is tried again after a while.
    now = asyncio.get_running_loop().time()
    assert suppliers.idle(now, 30.0) is None
    assert suppliers.idle(now + 31.0, 30.0) is supplier


async def test_another_registry_takes_over_when_the_first_fails_midway(
    mirror: Mirror, upstream: Scripted, other: Scripted
) -> None:
    """Both have it, and both have readers: neither reader notices, and hardly a byte comes twice."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    other.add_blob(data)
    hold = Hold(MIB)
    other.fail(str(blob), hold)
    other.fail(str(blob), Status(500), times=30)
    theirs = asyncio.create_task(mirror.get(of_other(blob)))
    await hold.reached.wait()
    ours = asyncio.create_task(mirror.get(of_healthy(blob)))
    await until(lambda: upstream.count("HEAD", str(blob)) == 1)
    assert [(await task).body for task in (theirs, ours)] == [data, data]
    assert upstream.count("GET", str(blob)) == 1
    assert upstream.sent[str(blob)] <= 1.2 * MIB
    hold.release.set()


async def test_what_one_registry_said_of_a_size_is_not_told_to_anothers_clients(
    mirror: Mirror, upstream: Scripted, other: Scripted
) -> None:
    """HEAD of a blob that is on its way asks the client's own registry."""
    blob = upstream.add_blob(os.urandom(1000))
    other.add_blob(upstream.blobs[str(blob)])
    hold = Hold(10)
    other.fail(str(blob), hold)
    theirs = asyncio.create_task(mirror.get(of_other(blob)))
    await hold.reached.wait()
    for method in ("HEAD", "GET"):
        upstream.fail(str(blob), Status(404), method=method, times=5)
    assert (await mirror.head(of_healthy(blob))).status == 404
    assert upstream.count("HEAD", str(blob)) == 1
    hold.release.set()
    await theirs


async def test_what_is_cached_is_served_to_whoever_asks_by_digest(mirror: Mirror, upstream: Scripted, other: Scripted) -> None:
    """The digest is all the trust that verified content needs: the other registry is not asked."""
    blob = upstream.add_blob(data := os.urandom(1000))
    await mirror.get(of_healthy(blob))
    await mirror.until_cached(blob)
    assert (await mirror.get(of_other(blob))).body == data
    assert other.asked == []


async def test_clients_of_one_repository_share_its_answer(mirror: Mirror, other: Scripted) -> None:
    """A refusal is asked for once, however many wait for it."""
    blob = Digest.of(b"nobody has it")
    other.fail(str(blob), Delay(0.2))
    answers = await asyncio.gather(*(mirror.get(of_other(blob)) for _ in range(10)))
    assert {answer.status for answer in answers} == {404}
    assert other.count("GET", str(blob)) == 1
