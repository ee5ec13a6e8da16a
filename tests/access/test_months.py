"""How much is allowed in a month, and that it is counted on after restarts and by all processes."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from mirror.access import month_file, months
from mirror.access.month_file import FILE, month_of, read_used
from mirror.access.months import Months
from mirror.access.rules import Action, Allowance, Rule
from mirror.errors import QuotaReached
from mirror.events import Action as What
from mirror.events import Event
from mirror.patterns import RepositoryPattern
from tests.support.commands import Commands
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE
from tests.support.pushes import Said, say
from tests.support.scripted import Scripted

NOVEMBER = datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC).timestamp()


def rule(most: int, name: str = "1", place: str = "**") -> Rule:
    patterns = (RepositoryPattern.parse("**"),)
    return Rule(name, frozenset({Action.PULL}), patterns, anyone=True, allowance=Allowance(month=most), place=place)


class Clock:
    now = NOVEMBER

    def __call__(self) -> float:
        return self.now


class Told:
    """Implements `Events`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def wants(self, action: What) -> bool:
        return True

    def send(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is written whenever it is asked for."""
    monkeypatch.setattr(months, "INTERVAL", 0.0)


def allows(counting: Months, rule: Rule, key: str) -> bool:
    try:
        counting.check(rule, key)
    except QuotaReached:
        return False
    return True


async def test_processes_count_together_and_one_tells(tmp_path: Path) -> None:
    """What one has sent counts in the other; the limit is told once, by the table; users, repositories and limits are apart; a restart forgets nothing."""
    told, clock, students, staff = Told(), Clock(), rule(1000), rule(5000, "2")
    one, two = (Months(tmp_path, told, clock) for _ in range(2))
    for process in (one, two):
        process.take([students])
    one.sent(students, "bob", 600)
    two.sent(students, "bob", 600)
    two.sent(staff, "alice", 1200)
    two.sent(rule(1000, "3", "class/**"), "bob", 999)
    assert allows(one, students, "bob")
    assert allows(two, students, "bob")
    for process in (one, two, one):
        await process.sync()
    assert not allows(one, students, "bob")
    assert not allows(two, students, "bob")
    assert allows(one, staff, "alice")
    assert allows(one, rule(1000, "3", "class/**"), "bob")
    one.sent(students, "bob", 1)
    await one.aclose()
    assert [(event.action, event.details["of"], event.details["limit"]) for event in told.events] == [(What.QUOTA, "bob", "1")]
    again = Months(tmp_path, told, clock)
    again.take([students])
    await again.sync()
    with pytest.raises(QuotaReached, match=r"2026-12-01 00:00 UTC"):
        again.check(students, "bob")
    assert allows(again, rule(5000), "bob"), "a limit that was raised counts at once"
    assert [(used.key, used.place, used.size, used.most) for used in read_used(tmp_path, clock.now)] == [
        ("bob", "**", 1201, 1000),
        ("alice", "**", 1200, 5000),
        ("bob", "class/**", 999, 1000),
    ]


async def test_a_month_ends(tmp_path: Path) -> None:
    """At midnight UTC, also for what was not yet written; nothing is kept of the month before."""
    clock, few = Clock(), rule(1000)
    counting = Months(tmp_path, clock=clock)
    counting.sent(few, "bob", 1000)
    await counting.sync()
    counting.sent(few, "bob", 1)
    assert not allows(counting, few, "bob")
    clock.now += 10
    assert allows(counting, few, "bob")
    counting.sent(few, "bob", 5)
    await counting.sync()
    assert [(used.key, used.size) for used in read_used(tmp_path, clock.now)] == [("bob", 5)]
    assert read_used(tmp_path, NOVEMBER) == []
    assert month_of(clock.now) == ("2026-12", datetime(2027, 1, 1, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("fault", ["damaged", "folder", "fifo", "link"])
async def test_a_file_that_cannot_be_used_costs_no_request(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """What was sent counts in memory, it is said once, and it is written when the file can be used again."""
    file, few, victim = tmp_path / FILE, rule(1000), tmp_path / "victim"
    victim.write_bytes(b"kept")
    match fault:
        case "damaged":
            file.write_bytes(b"no database" * 1000)
        case "folder":
            file.mkdir()
        case "fifo":
            os.mkfifo(file)
        case "link":
            file.symlink_to(victim)
    counting = Months(tmp_path)
    for _ in range(3):
        counting.sent(few, "bob", 400)
        await counting.sync()
    assert not allows(counting, few, "bob")
    assert len(caplog.records) == 1
    assert victim.read_bytes() == b"kept"
    with pytest.raises(OSError, match="months"):
        read_used(tmp_path, 0.0)
    file.rmdir() if fault == "folder" else file.unlink()
    await counting.sync()
    assert [used.size for used in read_used(tmp_path, counting._clock())] == [1200]


async def test_what_is_kept_is_bounded_and_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many addresses those with the most bytes are kept; a subject may be text that no database takes."""
    monkeypatch.setattr(month_file, "_MOST", 3)
    counting, few = Months(tmp_path), rule(1000)
    for size in range(1, 10):
        counting.sent(few, f"2001:db8:0:{size}::/64", size)
    counting.sent(few, "subject \ud800\0", 100)
    await counting.sync()
    assert [used.size for used in read_used(tmp_path, counting._clock())] == [100, 9, 8]
    assert oct((tmp_path / FILE).stat().st_mode & 0o777) == "0o600"


async def ask(url: str, path: str) -> Said:
    """On a connection of its own, which may reach another worker."""
    async with aiohttp.ClientSession(url) as session:
        return await say(session, "GET", path)


async def test_a_mirror_with_workers_holds_to_it_and_says_until_when(tmp_path: Path, upstream: Scripted) -> None:
    """The download that reaches the limit is sent whole; then 403, with the end of the month, in each worker and after kill -9; `mirror stats` shows who."""
    image = upstream.add_image("team/app", "1", layers=[os.urandom(200_000)])
    config = tmp_path / "mirror.toml"
    config.write_text('[[access]]\nwho = ["anyone"]\nbytes_per_month = "100KB"\n')
    path = f"/v2/team/app/blobs/{image.layers[0]}"
    mirror = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(config), "--workers", "2")
    with mirror:
        first = await ask(mirror.url, path)
        assert (first.status, len(first.body)) == (200, 200_000)
        # Until then one worker may not know what the other has sent.
        await until(lambda: "gets no more until" in mirror.log)
        refused = 0
        async with asyncio.timeout(PATIENCE):
            while refused < 8:
                refused = refused + 1 if (await ask(mirror.url, path)).status == 403 else 0
        said = await ask(mirror.url, "/v2/team/app/manifests/1")
        assert (said.status, said.code) == (403, "DENIED")
        assert "the next month begins on" in said.message
        assert "00:00 UTC" in said.message
        (month,) = json.loads(await Commands(tmp_path / "cache")("stats", "--json"))["month"]
        assert (month["who"], month["repositories"], month["most"]) == ("127.0.0.1", "**", 100_000)
        assert month["sent"] >= 200_000
        assert "127.0.0.1 was sent" in await Commands(tmp_path / "cache")("stats")
        assert mirror.metric("mirror_access_quotas_reached_total") == 1
        assert mirror.metric("mirror_access_month_bytes") >= 200_000
        mirror.kill()
        mirror.start()
        assert (await ask(mirror.url, path)).status == 403
        assert mirror.log.count("gets no more until") == 1
        assert await asyncio.to_thread(mirror.terminate) == 0
