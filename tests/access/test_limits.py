"""How much is allowed to each user or address."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.access import limits
from mirror.access.limits import Limits
from mirror.access.months import Months
from mirror.access.rules import Action, Allowance, Rule
from mirror.errors import LimitReached
from mirror.patterns import RepositoryPattern


def rule(**allowance: int) -> Rule:
    return Rule("1", frozenset({Action.PULL}), (RepositoryPattern.parse("**"),), anyone=True, allowance=Allowance(**allowance))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limits_of(share: int = 1, clock: Callable[[], float] = time.monotonic) -> Limits:
    return Limits(Months(Path("/nowhere")), share, clock)


def allowed(counting: Limits, rule: Rule, key: str, times: int) -> int:
    """How many requests of so many are."""
    done = 0
    for _ in range(times):
        try:
            counting.ask(rule, key)
        except LimitReached:
            continue
        done += 1
    return done


def test_requests() -> None:
    """A minute's worth at once, then as time goes by; each key has its own; the wait that is told is enough."""
    clock = Clock()
    counting = limits_of(clock=clock)
    six = rule(requests=6)
    assert allowed(counting, six, "alice", 10) == 6
    assert allowed(counting, six, "bob", 10) == 6
    with pytest.raises(LimitReached) as raised:
        counting.ask(six, "alice")
    clock.now += raised.value.retry_after
    assert allowed(counting, six, "alice", 10) == 1
    clock.now += 3600
    assert allowed(counting, six, "alice", 10) == 6


def test_bytes() -> None:
    """What was sent is counted afterwards: one who had ten minutes' worth waits ten minutes."""
    clock = Clock()
    counting = limits_of(clock=clock)
    thousand = rule(size=1000)
    counting.ask(thousand, "alice")
    counting.sent(thousand, "alice", 10_000)
    with pytest.raises(LimitReached) as raised:
        counting.ask(thousand, "alice")
    assert 540 <= raised.value.retry_after <= 541
    clock.now += raised.value.retry_after
    counting.ask(thousand, "alice")


def test_downloads_at_once() -> None:
    """As many as allowed; one that ends makes room for another."""
    counting = limits_of()
    two = rule(downloads=2)
    first, _ = counting.begin(two, "alice"), counting.begin(two, "alice")
    with pytest.raises(LimitReached):
        counting.begin(two, "alice")
    counting.begin(two, "bob")
    first()
    counting.begin(two, "alice")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_several_processes_allow_a_share_each(workers: int) -> None:
    """Together no more than one would, but one at least."""
    assert sum(allowed(limits_of(workers), rule(requests=6), "alice", 10) for _ in range(workers)) == 6
    assert allowed(limits_of(workers), rule(requests=1), "alice", 10) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has asked for nothing for longest is forgotten first."""
    monkeypatch.setattr(limits, "_MOST", 2)
    counting = limits_of(clock=Clock())
    one = rule(requests=1)
    assert [allowed(counting, one, key, 1) for key in ("a", "b", "b", "c", "a")] == [1, 1, 0, 1, 1]
