"""What the mirror promises of large blobs over slow links, and of registries with several endpoints (docs/design.md)."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from mirror.names import Digest
from mirror.upstream.health import Delivery, Lease
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Corrupt, Cut, NoRange, Rate, Scripted, Status, WrongRange

MIB = 1024 * 1024
SEGMENT = 8 * MIB
SIZE = 48 * MIB
SLOW = 8.0 * MIB
"""Bytes per second: so slow that another connection pays."""


def path(digest: Digest) -> str:
    return f"/v2/library/app/blobs/{digest}"


def ranges(upstream: Scripted, digest: Digest) -> list[tuple[int, int]]:
    """Of the requests that had one, in order."""
    found = []
    for asked in upstream.asked:
        if str(digest) in asked.path and asked.range is not None:
            first, last = asked.range.removeprefix("bytes=").split("-")
            found.append((int(first), int(last) + 1))
    return found


async def endpoints(mirror: Mirror) -> list[dict[str, Any]]:
    report = json.loads((await mirror.get("/readyz")).body)
    found: list[dict[str, Any]] = report["registries"]["docker.io"]
    return found


async def test_a_large_blob_over_a_capped_link_comes_in_closed_segments_side_by_side(mirror: Mirror, upstream: Scripted) -> None:
    """At least 8 MiB each, in the order of the bytes; hardly a byte is fetched twice."""
    # Slower than elsewhere: four connections at this rate are no work for a busy machine, so that each of them is seen to pay.
    upstream.rate = SLOW / 2
    blob = upstream.add_blob(data := os.urandom(SIZE))
    assert (await mirror.get(path(blob))).body == data
    parts = ranges(upstream, blob)
    assert len(parts) >= 3
    assert all(stop - start >= SEGMENT for start, stop in parts)
    # Those that are opened at the same moment may come in either order.
    assert all(abs(place - parts.index(part)) <= 3 for place, part in enumerate(sorted(parts)))
    assert upstream.most_bodies >= 3
    assert upstream.sent[str(blob)] <= 1.05 * SIZE


async def test_the_next_blob_begins_with_what_paid_before(mirror: Mirror, upstream: Scripted) -> None:
    """What was learnt of a registry need not be learnt anew with every layer."""
    upstream.rate = SLOW
    for _ in range(2):
        upstream.most_bodies = 0
        blob = upstream.add_blob(data := os.urandom(SIZE))
        assert (await mirror.get(path(blob))).body == data
    assert upstream.most_bodies >= 4


async def test_a_fast_link_is_not_loaded_for_nothing(mirror: Mirror, upstream: Scripted) -> None:
    """One connection, one request, each byte once."""
    blob = upstream.add_blob(data := os.urandom(SIZE))
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 1
    assert ranges(upstream, blob) == []
    assert upstream.sent[str(blob)] == SIZE


async def test_never_more_than_one_connection_where_that_is_set(start: StartMirror, upstream: Scripted) -> None:
    """``connections_per_blob = 1``."""
    upstream.rate = SLOW
    mirror: Mirror = await start(settings={"upstream": {"connections_per_blob": 1}})
    blob = upstream.add_blob(data := os.urandom(24 * MIB))
    assert (await mirror.get(path(blob))).body == data
    assert upstream.count("GET", str(blob)) == 1


async def test_the_bounds_hold_for_all_blobs_together(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a blob's first connection, no more than the bound allows; the first is always allowed."""
    upstream.rate = SLOW
    # Counted here: upstream hears of a connection's end a little later than of the next one's beginning.
    open_at_once = []
    original = Delivery.lease

    async def lease(delivery: Delivery) -> Lease:
        made = await original(delivery)
        open_at_once.append(delivery.active)
        return made

    monkeypatch.setattr(Delivery, "lease", lease)
    mirror: Mirror = await start(settings={"upstream": {"connections_per_endpoint": 4}})
    blobs = [upstream.add_blob(os.urandom(32 * MIB)) for _ in range(3)]
    answers = await asyncio.gather(*(mirror.get(path(blob)) for blob in blobs))
    assert [answer.digest() for answer in answers] == blobs
    assert 3 <= max(open_at_once) <= 4


@pytest.mark.parametrize("fault", [NoRange(), WrongRange(), Status(416)])
async def test_an_upstream_that_cannot_do_ranges_is_used_with_one_stream(mirror: Mirror, upstream: Scripted, fault: Any) -> None:
    """The first connection goes on to the end, and its bytes come once."""
    upstream.rate = SLOW
    blob = upstream.add_blob(data := os.urandom(24 * MIB))
    whole = asyncio.create_task(mirror.get(path(blob)))
    while not upstream.asked:
        await asyncio.sleep(0.01)
    upstream.fail(str(blob), fault, times=100)
    assert (await whole).body == data
    assert upstream.sent[str(blob)] <= 1.05 * 24 * MIB


async def test_and_is_remembered_as_such(mirror: Mirror, upstream: Scripted) -> None:
    """The next blob is not tried with ranges again."""
    upstream.rate, upstream.ranges = SLOW, False
    blobs = [upstream.add_blob(os.urandom(24 * MIB)) for _ in range(2)]
    for blob in blobs:
        assert (await mirror.get(path(blob))).digest() == blob
    assert len(ranges(upstream, blobs[0])) == 1
    assert ranges(upstream, blobs[1]) == []


async def test_cuts_cost_next_to_nothing(mirror: Mirror, upstream: Scripted) -> None:
    """Each connection is cut again and again: every segment goes on where it was."""
    upstream.rate = SLOW
    blob = upstream.add_blob(data := os.urandom(SIZE))
    upstream.fail(str(blob), Cut(3 * MIB), times=9)
    assert (await mirror.get(path(blob))).body == data
    assert upstream.sent[str(blob)] <= 1.05 * SIZE


async def test_one_redirect_serves_all_segments_until_it_is_refused(start: StartMirror, upstream: Scripted) -> None:
    """The registry is asked for a signed URL once, and once more when the store answers 403."""
    async with Scripted() as store:
        store.rate = SLOW
        upstream.redirect_blobs_to = store
        mirror: Mirror = await start()
        for refusals in (0, 1):
            asked = upstream.count("GET")
            blob = store.add_blob(data := os.urandom(SIZE))
            upstream.blobs[str(blob)] = data
            whole = asyncio.create_task(mirror.get(path(blob)))
            while not store.bodies:
                await asyncio.sleep(0.01)
            store.fail(str(blob), Status(403), times=refusals)
            assert (await whole).body == data
            assert len(ranges(store, blob)) >= 3
            assert upstream.count("GET") - asked == 1 + refusals


async def test_a_slow_connection_is_hedged_and_the_first_to_finish_wins(mirror: Mirror, upstream: Scripted) -> None:
    """A segment that would take minutes does not hold up the blob; what it costs is bounded."""
    upstream.rate = SLOW
    warm = upstream.add_blob(os.urandom(SIZE))
    await mirror.get(path(warm))
    size = 96 * MIB
    blob = upstream.add_blob(data := os.urandom(size))
    whole = asyncio.create_task(mirror.get(path(blob)))
    while upstream.count("GET", str(blob)) < 2:
        await asyncio.sleep(0.01)
    upstream.fail(str(blob), Rate(20_000.0))
    assert (await whole).body == data
    parts = ranges(upstream, blob)
    ends = [stop for _, stop in parts]
    assert len(set(ends)) < len(ends)
    assert upstream.sent[str(blob)] <= 1.05 * size


async def test_a_slow_endpoint_is_left_for_another(start: StartMirror, upstream: Scripted) -> None:
    """Blobs come from the endpoint that delivers, tags from the first in the order given."""
    async with Scripted() as other:
        upstream.rate, other.rate = 1.0 * MIB, 4 * SLOW
        mirror: Mirror = await start(endpoints=[upstream.url, other.url])
        for blob in (first := upstream.add_blob(os.urandom(SIZE)), second := upstream.add_blob(os.urandom(SIZE))):
            other.blobs[str(blob)] = upstream.blobs[str(blob)]
            assert (await mirror.get(path(blob))).digest() == blob
        assert other.sent[str(first)] > SIZE / 2
        assert upstream.sent.get(str(second), 0) < SIZE / 8
        image = upstream.add_image("library/app", "latest")
        assert (await mirror.get("/v2/app/manifests/latest")).body == image.body
        assert other.count("GET", "manifests") == 0
        slow, fast = await endpoints(mirror)
        assert fast["bytes_per_second"] > 4 * slow["bytes_per_second"]


async def test_an_endpoint_that_sends_wrong_bytes_is_found_out(start: StartMirror, upstream: Scripted) -> None:
    """The blob comes from another one; the liar is asked last from then on, and /readyz says so."""
    async with Scripted() as other:
        mirror: Mirror = await start(endpoints=[upstream.url, other.url])
        for number in range(2):
            blob = upstream.add_blob(data := os.urandom(1000))
            other.blobs[str(blob)] = data
            upstream.fail(str(blob), Corrupt(10), times=9)
            assert (await mirror.get(path(blob))).body == data
            assert upstream.count("GET", str(blob)) == 1 - number
        assert [endpoint["state"] for endpoint in await endpoints(mirror)] == ["wrong", "ok"]
        assert await mirror.metric("mirror_verification_failures_total") >= 1


async def test_wrong_bytes_among_segments_of_two_endpoints(start: StartMirror, upstream: Scripted) -> None:
    """Nobody can say whose they were: the next try takes all from one, and nobody ever has a complete wrong blob."""
    async with Scripted() as other:
        upstream.rate = other.rate = SLOW
        mirror: Mirror = await start(endpoints=[upstream.url, other.url])
        blob = upstream.add_blob(data := os.urandom(SIZE))
        other.blobs[str(blob)] = data
        other.fail(str(blob), *[Corrupt(at) for at in range(10 * MIB, SIZE, MIB)], times=2)
        got = await mirror.get(path(blob))
        assert got.cut or got.body == data
        await mirror.until_cached(blob)
        assert (await mirror.get(path(blob))).body == data
