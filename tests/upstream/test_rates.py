"""Caps on the rate of downloads, with a clock of the test's own (mirror/upstream/rates.py), and in a mirror."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from mirror.config import load, rates_at
from mirror.upstream.rates import Bucket, Queue, Share, Turn
from tests.support.mirrors import StartMirror
from tests.support.scripted import Scripted


def run(queue: Queue, shares: list[Share], seconds: float, connections: int = 1) -> Counter[Share]:
    """Bytes that each share gets in so many seconds, if it always has as many wishes as connections."""
    got: Counter[Share] = Counter()
    now = 0.0
    for share in shares * connections:
        queue.join(share)
    while now < seconds:
        ready, wait = queue.next(now)
        for turn in ready:
            got[turn.share] += turn.bytes
            queue.join(turn.share)
        assert ready or wait is not None, "somebody waits, and nobody's turn ever comes"
        now += wait or 0.0
    return got


@pytest.mark.parametrize("rate", [1_000, 50_000, 2_000_000, 100_000_000])
@pytest.mark.parametrize("blobs", [1, 3, 40])
def test_a_cap_is_kept_and_shared_equally(rate: int, blobs: int) -> None:
    """Whatever the rate and the number of blobs."""
    queue = Queue()
    queue.set(rate, {}, 0.0)
    shares = [Share("docker.io") for _ in range(blobs)]
    got = run(queue, shares, 60.0)
    assert sum(got.values()) == pytest.approx(rate * 60, rel=0.02, abs=2048)
    assert max(got[share] for share in shares) - min(got[share] for share in shares) <= 256 * 1024


def test_a_blob_with_many_connections_gets_no_more_than_one_with_one() -> None:
    """Blobs are equal, not connections."""
    queue, one, many = Queue(), Share("a"), Share("a")
    queue.set(1_000_000, {}, 0.0)
    for _ in range(7):
        queue.join(many)
    got = run(queue, [one, many], 20.0)
    assert got[one] == pytest.approx(got[many], rel=0.02)


def test_what_clients_wait_for_comes_before_what_is_fetched_ahead() -> None:
    """All of the rate, as long as clients want that much; the rest is the prefetcher's."""
    queue, wanted, ahead = Queue(), Share("a"), Share("a")
    ahead.wanted = False
    queue.set(1_000_000, {}, 0.0)
    got = run(queue, [wanted, ahead], 10.0)
    assert got[ahead] == 0
    assert got[wanted] == pytest.approx(10_000_000, rel=0.02)
    assert run(queue, [ahead], 0.0) == Counter()


def test_a_registrys_cap_holds_within_that_of_all() -> None:
    """The capped one gets its own, others the rest; a waiting registry holds nobody up."""
    queue, slow, fast = Queue(), Share("slow"), Share("fast")
    queue.set(1_000_000, {"slow": 100_000}, 0.0)
    got = run(queue, [slow, fast], 20.0)
    assert got[slow] == pytest.approx(2_000_000, rel=0.05)
    assert got[fast] == pytest.approx(18_000_000, rel=0.05)


def test_without_a_cap_everybody_goes_at_once() -> None:
    """And a cap that is taken away lets those go that wait."""
    queue, share = Queue(), Share("a")
    queue.set(1000, {}, 0.0)
    turns = [queue.join(share) for _ in range(9)]
    assert len(queue.next(0.0)[0]) < len(turns)
    queue.set(0, {}, 0.0)
    ready, wait = queue.next(0.0)
    assert ready
    assert wait is None
    assert all(isinstance(turn, Turn) and turn.bytes == 0 for turn in ready)


def test_a_pause_earns_little() -> None:
    """A tenth of a second's bytes, however long it was."""
    bucket = Bucket(1_000_000, 0.0)
    taken = 0
    while bucket.wait(3600.0) == 0:
        bucket.take(bucket.grant)
        taken += bucket.grant
    assert taken <= 150_000


def test_who_is_slow_by_the_cap_and_who_by_upstream() -> None:
    """By where most of the time goes, lately."""
    share = Share("a")
    assert not share.throttled(0.0)
    share.served, share.waited, share.received = 10.0, 0.5, 0.1
    assert share.throttled(11.0)
    assert not share.throttled(20.0), "long ago"
    share.waited, share.received = 0.1, 0.5
    assert not share.throttled(11.0), "upstream is slower than the cap"
    share.queued = 10.0
    assert share.throttled(20.0), "it waits now"


HOURS = [
    {"from": "08:00", "to": "18:00", "rate": "2MB"},
    {"from": "22:00", "to": "06:00", "rate": 0},
    {"from": "12:00", "to": "13:00", "rate": "1MB", "registry": "ghcr.io"},
]


@pytest.mark.parametrize(
    ("clock", "everything", "ghcr"),
    [
        ("07:59", 10_000_000, 5_000_000),
        ("08:00", 2_000_000, 5_000_000),
        ("12:30", 2_000_000, 1_000_000),
        ("17:59", 2_000_000, 5_000_000),
        ("18:00", 10_000_000, 5_000_000),
        ("22:00", 0, 5_000_000),
        ("00:00", 0, 5_000_000),
        ("05:59", 0, 5_000_000),
        ("06:00", 10_000_000, 5_000_000),
    ],
)
def test_other_hours_have_other_rates(clock: str, everything: int, ghcr: int) -> None:
    """Over midnight too; an entry of a registry replaces that registry's rate alone, and processes share."""
    tree: dict[str, Any] = {"upstream": {"max_rate": "10MB", "rate": HOURS}, "registries": {"ghcr.io": {"max_rate": "5MB"}}}
    when = time.mktime((2026, 11, 29, int(clock[:2]), int(clock[3:]), 30, 0, 0, -1))
    assert rates_at(load(None, {}, tree), when) == (everything, {"ghcr.io": ghcr})
    assert rates_at(load(None, {}, tree), when, 4) == (everything // 4, {"ghcr.io": ghcr // 4})


@pytest.mark.parametrize(
    ("utc", "rate"),
    [
        ("2026-03-29 00:59", 0),
        # 02:00 to 03:00 does not exist on that day.
        ("2026-03-29 01:00", 1_000_000),
        ("2026-03-29 01:29", 1_000_000),
        ("2026-03-29 01:30", 0),
        # 02:00 to 03:00 comes twice.
        ("2026-10-25 00:29", 0),
        ("2026-10-25 00:30", 1_000_000),
        ("2026-10-25 01:00", 0),
        ("2026-10-25 01:30", 1_000_000),
        ("2026-10-25 02:29", 1_000_000),
        ("2026-10-25 02:30", 0),
    ],
)
def test_hours_are_what_a_clock_on_the_wall_shows(berlin: None, utc: str, rate: int) -> None:
    """On the days too on which it is put forward or back."""
    tree = {"upstream": {"rate": [{"from": "02:30", "to": "03:30", "rate": "1MB"}]}}
    when = datetime.fromisoformat(f"{utc}+00:00").timestamp()
    assert rates_at(load(None, {}, tree), when) == (rate, {})


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time is that of Berlin."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


async def test_a_capped_download_is_slow_and_whole(start: StartMirror, upstream: Scripted) -> None:
    """Over one connection, though many would be allowed, without a hedge, a resumption or an error; `stall_timeout` is shorter than the wait for a turn."""
    data = os.urandom(40_000)
    blobs = [upstream.add_blob(os.urandom(20_000) + data) for _ in range(4)]
    mirror = await start(settings={"upstream": {"max_rate": 80_000, "stall_timeout": "50ms", "connections_per_blob": 8}})
    answers = await asyncio.gather(*(mirror.get(f"/v2/library/app/blobs/{blob}") for blob in blobs))
    for blob, answer in zip(blobs, answers, strict=True):
        assert (answer.status, answer.body) == (200, upstream.blobs[str(blob)])
        assert upstream.count("GET", str(blob)) == 1
