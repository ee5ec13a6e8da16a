"""Caps on the rate of downloads, with a clock of the test's own (mirror/upstream/rates.py), and in a mirror."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from mirror.config import load, rates_at
from mirror.config.in_force import in_force
from mirror.upstream.connection import Connection
from mirror.upstream.health import Delivery
from mirror.upstream.rates import Bucket, Limiter, Parts, Queue, Share, Turn
from mirror.upstream.transport import Connections, Timeouts, Transport
from tests.support.mirrors import MirrorProcess, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Scripted


def run(shares: dict[Queue, list[Share]], seconds: float, slow: Mapping[Share, int] | None = None) -> Counter[Share]:
    """Returns the bytes that each share gets in so many seconds in the queue of its process, if it always wants more.

    Shares in `slow` receive at most so many bytes a second, whatever they are granted.
    """
    got: Counter[Share] = Counter()
    wishes = [(0.0, number, queue, share) for number, (queue, share) in enumerate((q, s) for q in shares for s in shares[q])]
    timers = dict.fromkeys(shares, 0.0)
    number = itertools.count(len(wishes))
    while True:
        now = min([*timers.values(), *(when for when, *_ in wishes[:1])], default=seconds)
        if now >= seconds:
            return got
        if wishes and wishes[0][0] <= now:
            _, _, queue, share = heapq.heappop(wishes)
            queue.join(share, now)
        else:
            queue = min(timers, key=timers.__getitem__)
        ready, wait = queue.next(now)
        for turn in ready:
            most = (slow or {}).get(turn.share)
            count = turn.bytes if most is None else min(turn.bytes, most // 20)
            queue.unused(turn, turn.bytes - count)
            got[turn.share] += count
            # The next wish comes when the bytes are here.
            heapq.heappush(wishes, (now + (0.0002 if most is None else count / most), next(number), queue, turn.share))
        timers[queue] = seconds if wait is None else now + wait


@pytest.mark.parametrize("rate", [1_000, 50_000, 2_000_000, 100_000_000])
@pytest.mark.parametrize("blobs", [1, 3, 40])
def test_a_cap_is_kept_and_shared_equally(rate: int, blobs: int) -> None:
    """Whatever the rate and the number of blobs."""
    queue = Queue()
    queue.set(rate, {}, 0.0)
    shares = [Share("docker.io") for _ in range(blobs)]
    got = run({queue: shares}, 60.0)
    assert sum(got.values()) == pytest.approx(rate * 60, rel=0.02, abs=2048)
    assert max(got[share] for share in shares) - min(got[share] for share in shares) <= 256 * 1024


def test_a_blob_with_many_connections_gets_no_more_than_one_with_one() -> None:
    """Blobs are equal, not connections."""
    queue, one, many = Queue(), Share("a"), Share("a")
    queue.set(1_000_000, {}, 0.0)
    got = run({queue: [one, *[many] * 7]}, 20.0)
    assert got[one] == pytest.approx(got[many], rel=0.02)


def test_what_clients_wait_for_comes_before_what_is_fetched_ahead() -> None:
    """The rest is the prefetcher's. But a connection of its, which upstream would close without progress, gets a little every ten seconds."""
    queue, wanted, ahead = Queue(), Share("a"), [Share("a") for _ in range(3)]
    for share in ahead:
        share.wanted = False
    queue.set(1_000_000, {}, 0.0)
    got = run({queue: [wanted, *ahead]}, 60.0)
    assert got[wanted] == pytest.approx(60_000_000, rel=0.02)
    assert all(5 * 25_000 <= got[share] <= 6 * 25_000 for share in ahead)
    alone = Queue()
    alone.set(1_000_000, {}, 0.0)
    assert sum(run({alone: ahead}, 10.0).values()) == pytest.approx(10_000_000, rel=0.03)


def test_what_is_fetched_ahead_leaves_a_reserve_to_clients() -> None:
    """A client's connection that was busy for a tenth of a second finds the rate as it left it. What clients leave beyond that is used."""
    queue, wanted, ahead = Queue(), Share("a"), Share("a")
    ahead.wanted = False
    queue.set(1_000_000, {}, 0.0)
    queue.join(ahead, 0.05)
    ready, wait = queue.next(0.05)
    assert not ready
    assert wait == pytest.approx(0.05)
    queue.join(wanted, 0.05)
    assert [turn.share for turn in queue.next(0.05)[0]] == [wanted]
    assert [turn.share for turn in queue.next(0.13)[0]] == [ahead]


def test_a_blob_that_a_client_has_come_to_wait_for_goes_to_the_front() -> None:
    """At once, not when its turn as a prefetched one would be."""
    queue, first, joined = Queue(), Share("a"), Share("a")
    joined.wanted = False
    queue.set(1_000_000, {}, 0.0)
    for share in (first, joined, first, first):
        queue.join(share, 0.0)
    assert [turn.share for turn in queue.next(0.0)[0]] == [first]
    joined.wanted = True
    assert [turn.share for turn in queue.next(0.03)[0]] == [joined]


def test_a_registrys_cap_holds_within_that_of_all() -> None:
    """The capped one gets its own, others the rest; a waiting registry holds nobody up."""
    queue, slow, fast = Queue(), Share("slow"), Share("fast")
    queue.set(1_000_000, {"slow": 100_000}, 0.0)
    got = run({queue: [slow, fast]}, 20.0)
    assert got[slow] == pytest.approx(2_000_000, rel=0.05)
    assert got[fast] == pytest.approx(18_000_000, rel=0.05)


def test_without_a_cap_everybody_goes_at_once() -> None:
    """And a cap that is taken away lets those go that wait."""
    queue, share = Queue(), Share("a")
    queue.set(1000, {}, 0.0)
    turns = [queue.join(share, 0.0) for _ in range(9)]
    assert len(queue.next(0.0)[0]) < len(turns)
    queue.set(0, {}, 0.0)
    ready, wait = queue.next(0.0)
    assert ready
    assert wait is None
    assert all(isinstance(turn, Turn) and turn.bytes == 0 for turn in ready)


def test_a_pause_earns_little() -> None:
    """A fifth of a second's bytes, however long it was."""
    bucket = Bucket(1_000_000, 0.0)
    taken = 0
    while bucket.wait(3600.0) == 0:
        bucket.take(bucket.grant)
        taken += bucket.grant
    assert taken <= 250_000


def test_nobody_waits_for_what_was_received_at_a_higher_rate() -> None:
    """A cap that becomes a thousandth in the middle of a grant holds nobody up for longer than a grant of its own does."""
    queue, share = Queue(), Share("a")
    queue.set(10_000_000, {}, 0.0)
    queue.join(share, 0.0)
    assert queue.next(0.0)[0]
    queue.set(10_000, {}, 0.0)
    queue.join(share, 0.0)
    ready, wait = queue.next(0.0)
    assert not ready
    assert wait is not None
    assert wait <= 0.11


WORKERS = [[1], [1, 1], [1, 3], [0, 1, 7], [2, 2, 2, 2], [20, 1, 0, 1]]


@pytest.mark.parametrize("rate", [40_000, 2_000_000, 100_000_000])
@pytest.mark.parametrize("blobs", WORKERS, ids=str)
def test_workers_keep_one_cap_together_and_share_it_equally_among_blobs(rate: int, blobs: list[int]) -> None:
    """However the blobs are spread over the processes."""
    shares = {queue: [Share("docker.io") for _ in range(count)] for queue, count in zip(workers(len(blobs)), blobs, strict=True)}
    for queue in shares:
        queue.set(rate, {}, 0.0)
    got = run(shares, 20.0)
    assert sum(got.values()) == pytest.approx(rate * 20, rel=0.05)
    fair = rate * 20 / sum(blobs)
    assert all(got[share] == pytest.approx(fair, rel=0.2, abs=4096) for some in shares.values() for share in some)


def test_what_clients_of_one_worker_wait_for_comes_before_what_another_fetches_ahead() -> None:
    """Nearly all of the cap is the clients'; a registry's own cap is shared alike."""
    for caps in ((1_000_000, {}), (0, {"docker.io": 1_000_000})):
        first, second = workers(2)
        wanted, ahead = Share("docker.io"), [Share("docker.io") for _ in range(4)]
        for share in ahead:
            share.wanted = False
        for queue in (first, second):
            queue.set(*caps, 0.0)
        got = run({first: [wanted], second: ahead}, 20.0)
        assert got[wanted] > 0.9 * 20_000_000
        assert sum(got.values()) == pytest.approx(20_000_000, rel=0.05)


def test_what_a_blob_of_another_worker_does_not_use_is_not_wasted() -> None:
    """Its registry sends less than its share: the rest is for those that wait."""
    first, second = workers(2)
    quick, slow = Share("docker.io"), Share("docker.io")
    for queue in (first, second):
        queue.set(1_000_000, {}, 0.0)
    got = run({first: [quick], second: [slow]}, 20.0, slow={slow: 50_000})
    assert got[slow] > 0.8 * 20 * 50_000
    assert sum(got.values()) > 0.9 * 20_000_000


def test_a_worker_that_is_gone_leaves_its_part_to_the_others() -> None:
    """A second after its last sign, whether it has ended or hangs."""
    first, second = workers(2)
    one, other = Share("docker.io"), Share("docker.io")
    for queue in (first, second):
        queue.set(1_000_000, {}, 0.0)
    run({second: [other]}, 1.0)
    got = run({first: [one]}, 20.0)
    assert got[one] > 0.9 * 20_000_000


def workers(count: int) -> list[Queue]:
    """Queues of processes that share their caps."""
    registries = ["docker.io", "ghcr.io"]
    shared = memoryview(bytearray(8 * count * Parts.width(registries))).cast("d")
    return [Queue(Parts(shared, number, registries)) for number in range(count)]


def test_who_is_slow_by_the_cap_and_who_by_upstream() -> None:
    """By where most of the time goes, lately."""
    share = Share("a")
    assert not share.throttled(0.0)
    share.served, share.waited, share.received = 10.0, 0.5, 0.1
    assert share.throttled(11.0)
    assert not share.throttled(20.0), "long ago"
    share.waited, share.received = 0.1, 0.5
    assert not share.throttled(11.0), "upstream is slower than the cap"
    share.waiting, share.queued = 1, 10.0
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


async def test_a_cap_that_is_taken_away_lets_everybody_go() -> None:
    """Those that wait for their turn get it without a limit."""
    limiter, share = Limiter(), Share("a")
    limiter.set(1, {})
    first = await limiter.turn(share)
    waiting = asyncio.create_task(limiter.turn(share))
    while not share.waiting:
        await asyncio.sleep(0)
    assert first.bytes == 1024
    limiter.set(0, {})
    assert (await waiting).bytes == 0
    assert not limiter.capped("a")


async def test_a_turn_that_nobody_takes_is_the_next_ones() -> None:
    """A connection that is given up while it waits, or just when its turn has come, costs nothing."""
    limiter, share = Limiter(), Share("a")
    limiter.set(10_000, {})
    await limiter.turn(share)
    for _ in range(5):
        waiting = asyncio.create_task(limiter.turn(share))
        while not share.waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert share.waiting == 0
    async with asyncio.timeout(PATIENCE):
        await limiter.turn(share)
    limiter.close()


async def test_time_that_the_cap_takes_is_not_the_endpoints() -> None:
    """Neither while it is spent nor afterwards, nor where the download ends meanwhile."""
    now = 0.0
    delivery = Delivery(lambda: now)
    leases = [await delivery.lease() for _ in range(2)]
    for lease in leases:
        delivery.begin(lease, 0.1)
        lease.taken = 4_000_000
    now = 2.0
    assert delivery.throughput == 2_000_000
    for lease in leases:
        lease.pause()
    now = 100.0
    assert delivery.throughput == 2_000_000
    leases[0].resume()
    leases[0].end()
    leases[1].end()
    assert delivery.throughput == 2_000_000


@pytest.mark.parametrize(("cap", "measured"), [("100KB", False), ("9GB", True)])
async def test_a_capped_download_says_nothing_of_the_endpoint(
    start: StartMirror, upstream: Scripted, cap: str, measured: bool
) -> None:
    """Neither that it is slow, nor, by the bytes that were waiting in the kernel, that it is fast. One that the cap does not slow down is measured."""
    blob = upstream.add_blob(os.urandom(150_000 if not measured else 3_000_000))
    mirror = await start(settings={"upstream": {"max_rate": cap}})
    assert (await mirror.get(f"/v2/library/app/blobs/{blob}")).status == 200
    (endpoint,) = json.loads((await mirror.get("/readyz")).body)["registries"]["docker.io"]
    assert (endpoint["bytes_per_second"] is not None) is measured


async def test_upstream_sends_little_ahead_of_a_low_cap(start: StartMirror, upstream: Scripted) -> None:
    """What its connection has in the kernel is a small part of a second, not the 128 KiB and more that the kernel takes by itself."""
    blob = upstream.add_blob(os.urandom(1_000_000))
    mirror = await start(settings={"upstream": {"max_rate": "200KB"}})
    async with mirror.session.get(f"/v2/library/app/blobs/{blob}") as answer:
        read = 0
        while read < 150_000:
            read += len(await answer.content.readany())
            assert upstream.acknowledged < read + 64 * 1024
    assert upstream.count("GET", str(blob)) == 1


def test_what_upstream_sends_without_a_turn_is_charged() -> None:
    """It delays everybody until the rate has made up for it, by a second at most; what is read of it later is given back."""
    bucket = Bucket(1_000_000, 0.0)
    bucket.charge(500_000)
    assert bucket.wait(0.0) == pytest.approx(0.5)
    bucket.charge(-500_000)
    assert bucket.wait(0.0) == 0
    bucket.charge(90_000_000)
    assert bucket.wait(0.0) == pytest.approx(1.0)


def test_what_upstream_sends_ahead_stays_charged_while_workers_share_a_cap() -> None:
    """A process takes its part anew every 50 ms; only another cap forgives the debt."""
    bucket = Bucket(1_000_000, 0.0)
    bucket.charge(400_000)
    bucket.change(1_000_000, 0.5, 0.0)
    assert bucket.wait(0.0) == pytest.approx(0.8)
    bucket.change(500_000, 1.0, 0.0)
    assert bucket.wait(0.0) <= 1 / 40


@pytest.mark.parametrize(
    ("caps", "size"),
    [
        ((0, {}), None),
        ((1_000, {}), 8 * 1024),
        ((400_000, {}), 50_000),
        ((1_000_000, {}), None),
        ((1_000_000, {"docker.io": 400_000}), 50_000),
        ((1_000_000, {"ghcr.io": 400_000}), None),
    ],
)
def test_connections_have_small_receive_buffers_under_a_low_cap(caps: tuple[int, dict[str, int]], size: int | None) -> None:
    """The lowest cap that holds for the registry counts; where it is high or absent, the kernel chooses."""
    queue = Queue()
    queue.set(*caps, 0.0)
    assert queue.receive_buffer("docker.io") == size


async def test_a_connection_made_under_a_low_cap_is_not_used_again_once_it_is_lifted(upstream: Scripted) -> None:
    """Its window would stay small. Under one cap connections are used again."""
    transport = Transport(Timeouts(5, 5, 5, 1), Connections(1, 1, 1))

    async def ask() -> int:
        """Asks upstream, and returns the number of connections that it has."""
        url = URL(f"{upstream.url}/v2/")
        response = await transport.request("GET", url, {}, public_only=False, registry="docker.io")
        while await response.read(5):
            pass
        await response.aclose()
        return upstream.connections

    try:
        transport.limiter.set(100_000, {})
        assert [await ask(), await ask()] == [1, 1]
        transport.limiter.set(0, {})
        assert [await ask(), await ask()] == [2, 2]
    finally:
        await transport.aclose()


def test_a_connection_counts_what_has_arrived_unread() -> None:
    """Without an error once it is closed, as when the mirror stops within a download."""
    ours, theirs = socket.socketpair()
    connection = Connection("key", ours)
    assert connection.unread == 0
    theirs.sendall(b"x" * 1000)
    assert connection.unread == 1000
    connection.close()
    theirs.close()
    assert connection.unread == 0


async def test_the_end_of_a_blob_keeps_nobody_waiting(start: StartMirror, upstream: Scripted) -> None:
    """At a low rate bytes keep coming up to the last KiB, which waits for the digest."""
    data = os.urandom(50_000)
    blob = upstream.add_blob(data)
    hold = Hold(len(data) - 1)
    upstream.fail(str(blob), hold)
    mirror = await start(settings={"upstream": {"max_rate": "1MB"}})
    async with mirror.session.get(f"/v2/library/app/blobs/{blob}") as answer:
        assert await answer.content.readexactly(len(data) - 1024) == data[:-1024]
        hold.release.set()
        assert await answer.content.read() == data[-1024:]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sighup_takes_a_rate_for_downloads_under_way(tmp_path: Path, upstream: Scripted, workers: str) -> None:
    """In every worker. At the first rate this one would take an hour; the second is the registry's own."""
    data = os.urandom(4_000_000)
    blob = upstream.add_blob(data)
    file = tmp_path / "mirror.toml"
    file.write_text('[upstream]\nmax_rate = "1KB"\n')
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(file), "--workers", workers) as mirror:
        async with aiohttp.ClientSession(mirror.url) as session, session.get(f"/v2/app/blobs/{blob}") as answer:
            begun = await answer.content.readexactly(1000)
            file.write_text('[registries."docker.io"]\nmax_rate = "1GB"\n')
            os.kill(mirror.pid, signal.SIGHUP)
            assert begun + await answer.content.read() == data
        assert 'SIGHUP: taken: upstream.max_rate, registries."docker.io".max_rate' in mirror.log
        assert upstream.count("GET", str(blob)) == 1


def test_rates_in_force_are_shown() -> None:
    """For people, with their hours."""
    shown = in_force(load(None, {}, {"upstream": {"max_rate": "4MiB", "rate": HOURS}}))
    assert shown["upstream.max_rate"] == "4 MiB/s"
    assert shown["upstream.rate"].startswith("1.91 MiB/s from 08:00 to 18:00, no limit from 22:00 to 06:00")


async def test_a_capped_download_is_slow_and_whole(start: StartMirror, upstream: Scripted) -> None:
    """Over one connection, though many would be allowed, without a hedge, a resumption or an error; `stall_timeout` is shorter than the wait for a turn."""
    data = os.urandom(40_000)
    blobs = [upstream.add_blob(os.urandom(20_000) + data) for _ in range(4)]
    mirror = await start(settings={"upstream": {"max_rate": 80_000, "stall_timeout": "50ms", "connections_per_blob": 8}})
    answers = await asyncio.gather(*(mirror.get(f"/v2/library/app/blobs/{blob}") for blob in blobs))
    for blob, answer in zip(blobs, answers, strict=True):
        assert (answer.status, answer.body) == (200, upstream.blobs[str(blob)])
        assert upstream.count("GET", str(blob)) == 1
