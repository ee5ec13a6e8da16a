"""What a download's plan decides, by tables: no connection is opened and no clock runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mirror.downloads import planner
from mirror.downloads.planner import Detour, Fetch, GiveUp, Hedge, Planner, Split
from mirror.downloads.segments import Segment
from mirror.storage.extents import Extents

MIB = 1024 * 1024
SEGMENT = planner.SEGMENT


@dataclass(frozen=True)
class State:
    """Implements `planner.State`."""

    have: Extents
    size: int | None
    workers: int
    extras: int
    wanted: bool = True
    answered: bool = True
    ranges: bool = True
    single: bool = False
    least: int = 1
    throttled: bool = False


def state(size: int | None = 48 * MIB, here: int = 0, workers: int = 0, extras: int = 0, **changes: Any) -> State:
    """A download of which the first `here` bytes have come."""
    have = Extents()
    have.add(0, here)
    return State(have, size, workers, extras, **changes)


def plan(learned: int = 1, target: int = 1, *, now: float = 0.0) -> Planner:
    made = Planner(16, learned, now)
    made.concurrency.target = target
    return made


def running(of: Planner, start: int, end: int | None, position: int, *, began: float | None = 0.0) -> Segment:
    """A segment that a connection is fetching."""
    segment = of.segments.add(Segment(start, end, 0.0))
    segment.position, segment.began = position, began
    return segment


@pytest.mark.parametrize(
    ("what", "target", "expected"),
    [
        (state(None, answered=False), 1, (0, None, False)),  # the first connection takes all, whatever it is
        (state(), 1, (0, 48 * MIB, False)),
        (state(here=MIB), 1, (MIB, 48 * MIB, False)),  # goes on where an earlier one ended
        (state(), 2, (0, 8 * MIB, False)),  # even pieces, as many as keep all busy
        (state(20 * MIB), 2, (0, 10 * MIB, False)),
        (state(15 * MIB), 2, (0, 15 * MIB, False)),  # too small to be worth two
        (state(ranges=False), 2, (0, 48 * MIB, False)),
        (state(single=True), 2, (0, 48 * MIB, False)),
        (state(wanted=False), 2, (0, 48 * MIB, True)),  # nobody waits: one connection, which may be refused
        (state(1000, here=1000), 1, None),
    ],
)
def test_what_the_next_worker_fetches(what: State, target: int, expected: tuple[int, int | None, bool] | None) -> None:
    """The first bytes that nobody fetches, in segments where several connections share them."""
    action = plan(target=target).start(what, 0.0)
    if expected is None:
        assert action is None
    else:
        assert isinstance(action, Fetch)
        assert (action.segment.start, action.segment.end, action.spare) == expected


def test_never_more_workers_than_pay() -> None:
    """And a worker too many ends with its segment."""
    made = plan(target=2)
    assert made.start(state(workers=2), 0.0) is None
    assert made.next_segment(state(workers=3), 0.0) is None


@pytest.mark.parametrize(
    ("end", "position", "expected"),
    [
        (48 * MIB, 0, Split(SEGMENT, 2 * SEGMENT)),  # it goes on until a little before
        (48 * MIB, 8 * MIB, Split(2 * SEGMENT, 3 * SEGMENT)),
        (48 * MIB, 33 * MIB, None),  # too little is left
    ],
)
def test_a_further_worker_takes_a_part_of_the_largest_segment(end: int, position: int, expected: Split | None) -> None:
    """Where no bytes are free; and only one at a time looks for its part."""
    made = plan(target=2)
    running(made, 0, end, position, began=None)
    what = state(here=position, workers=1)
    assert made.start(what, 1.0) == expected
    assert made.start(what, 1.0) is None
    if expected is not None:
        made.taken(expected.start)
        assert made.start(what, 1.0) == expected


def test_a_split_shortens_the_segment_that_it_is_taken_from() -> None:
    """Not where that is the pair of a hedge, or has gone."""
    made = plan(target=2)
    owner = running(made, 0, 48 * MIB, 0)
    part = made.separate(state(workers=1), 8 * MIB, 16 * MIB, 0.0)
    assert part is not None
    assert (part.start, part.end, owner.end) == (8 * MIB, 16 * MIB, 8 * MIB)
    made.hedge(owner, 0.0)
    assert made.separate(state(workers=2), 4 * MIB, 8 * MIB, 0.0) is None
    assert made.separate(state(workers=2), 40 * MIB, 56 * MIB, 0.0) is None


@pytest.mark.parametrize(
    ("position", "stop", "owner", "now", "expected"),
    [
        (20 * MIB, 21 * MIB, 0, 0.1, Detour(20 * MIB, 21 * MIB)),  # far ahead
        (20 * MIB, None, 0, 0.1, Detour(20 * MIB, 48 * MIB)),
        (4 * MIB, 5 * MIB, 0, 0.1, None),  # near, as long as nobody knows how fast it is
        (4 * MIB, 5 * MIB, MIB // 10, 10.0, Detour(4 * MIB, 5 * MIB)),  # 10 kB/s
        (4 * MIB, 5 * MIB, 3 * MIB, 0.5, None),  # 6 MiB/s
        (MIB, 2 * MIB, MIB - 1000, 1000.0, None),  # just before it: 256 KiB are not worth a request
    ],
)
def test_a_reader_ahead_gets_a_connection_of_its_own(
    position: int, stop: int | None, owner: int, now: float, expected: Detour | None
) -> None:
    """Where no connection comes to its bytes within half a second; once for each position."""
    made = plan()
    running(made, 0, 48 * MIB, owner)
    what = state(here=owner, workers=1)
    assert made.detour(what, position, stop, now) == expected
    assert made.detour(what, position, stop, now) is None


def test_a_reader_that_waits_for_verification_gets_no_connection() -> None:
    """The last bytes are here: nothing is fetched for them."""
    made = plan()
    running(made, 0, 48 * MIB, 0)
    assert made.detour(state(here=47 * MIB, workers=1), 46 * MIB, None, 0.1) is None


@pytest.mark.parametrize("what", [state(None, workers=1), state(ranges=False, workers=1), state(workers=1, extras=4)])
def test_there_are_bounds_on_detours(what: State) -> None:
    """None without a size, without ranges, beyond four, or after one has failed."""
    made = plan()
    running(made, 0, what.size, 0)
    assert made.detour(what, 20 * MIB, None, 0.0) is None
    made.detours = False
    assert made.detour(state(workers=1), 20 * MIB, None, 0.0) is None


def test_a_connection_far_slower_than_its_siblings_is_hedged_once() -> None:
    """Below a quarter of their median, and only while what comes twice is a small share of the blob."""
    made = plan(target=3)
    fast, other, slow = (running(made, start * MIB, (start + 8) * MIB, start * MIB) for start in (0, 8, 16))
    what = state(96 * MIB, workers=3)
    assert made.observe(what, 1.0) == []
    for segment, gained in ((fast, 4 * MIB), (other, 4 * MIB), (slow, 1000)):
        segment.position += gained
    [hedge] = made.observe(what, 2.0)
    assert isinstance(hedge, Hedge)
    assert (hedge.slow, hedge.segment.start, hedge.segment.end) == (slow, slow.position, slow.end)
    assert hedge.segment.lock is slow.lock
    assert made.observe(what, 3.0) == []


@pytest.mark.parametrize(
    ("gained", "wanted", "rescued"),
    [(0, True, True), (1000, True, True), (24 * MIB, True, False), (0, False, False)],
)
def test_a_slow_download_is_rescued_by_another_registry(gained: int, wanted: bool, rescued: bool) -> None:
    """Where somebody waits for it, and at its rate it would take longer than ten seconds."""
    made = plan()
    segment = running(made, 0, 48 * MIB, 0)
    assert made.rescue(state(workers=1, wanted=wanted), 0.5) is None
    segment.position = gained
    what = state(here=gained, workers=1, wanted=wanted)
    assert [made.rescue(what, now) is not None for now in (1.0, 1.5)] == [rescued, False]
    assert (segment.hedge is not None) == rescued


@pytest.mark.parametrize(
    ("wanted", "seconds", "count", "expected"),
    [
        (False, 59.0, 0, None),
        (False, 61.0, 6, GiveUp(6, planner.WINDOW_UNREAD)),  # a byte in ten seconds
        (False, 61.0, planner.LEAST_PROGRESS, None),
        (True, 299.0, 30, None),
        (True, 301.0, 30, GiveUp(30, planner.WINDOW_READ)),
        (True, 301.0, planner.LEAST_PROGRESS, None),
    ],
)
def test_a_download_that_hardly_moves_is_given_up(wanted: bool, seconds: float, count: int, expected: GiveUp | None) -> None:
    """Total progress is judged, window by window; readers are given more time than what nobody reads."""
    made = plan()
    made.give_up(state(here=0, workers=1, wanted=wanted), 0.0)
    assert made.give_up(state(here=count, workers=1, wanted=wanted), seconds) == expected


def test_a_reader_that_comes_late_may_wait_as_long_as_others_could() -> None:
    """The window begins anew when the first reader comes."""
    made = plan()
    assert made.give_up(state(wanted=False), 59.0) is None
    assert made.give_up(state(wanted=True), 61.0) is None
    assert made.give_up(state(wanted=True), 360.0) is None
    assert made.give_up(state(wanted=True), 361.0) == GiveUp(0, planner.WINDOW_READ)


def test_readers_that_leave_win_no_time() -> None:
    """A window that was judged by the patience of readers is judged by that of nobody from then on."""
    made = plan()
    assert made.give_up(state(wanted=True), 0.0) is None
    assert made.give_up(state(wanted=True), 100.0) is None
    assert made.give_up(state(wanted=False), 101.0) == GiveUp(0, planner.WINDOW_UNREAD)


def test_what_an_earlier_download_has_left_is_no_progress() -> None:
    """A download that is resumed has to bring bytes of its own in its first window."""
    made = planner.Planner(1, 1, 0.0, 10 * planner.SEGMENT)
    resumed = state(here=10 * planner.SEGMENT, size=20 * planner.SEGMENT, wanted=False)
    assert made.give_up(resumed, planner.WINDOW_UNREAD) == GiveUp(0, planner.WINDOW_UNREAD)


def test_a_download_that_the_cap_makes_slow_is_not_judged_by_it() -> None:
    """No connection is added, nothing is hedged or given up, whatever little comes; once the cap no longer holds it back, the windows begin anew."""
    made, slow = plan(learned=8), state(workers=1, throttled=True)
    running(made, 0, None, 0)
    for second in range(1, 700):
        assert made.give_up(slow, float(second)) is None
        assert made.observe(slow, float(second)) == []
        assert made.rescue(slow, float(second)) is None
        assert made.start(slow, float(second)) is None
    judged = state(workers=1)
    assert made.give_up(judged, 900.0) is None
    assert made.give_up(judged, 1000.0) is not None


def test_a_second_connection_to_who_downloads_itself_is_for_bytes_out_of_order_only() -> None:
    """None is added, and nothing hedged, however long it lasts. A reader far ahead gets its detour. Once all of it is there, connections are added as usual."""
    made, single = plan(target=4), state(workers=1, single=True)
    running(made, 0, 48 * MIB, 0)
    for second in range(1, 60):
        assert made.observe(single, float(second)) == []
        assert made.start(single, float(second)) is None
    assert made.detour(single, 40 * MIB, 41 * MIB, 60.0) == Detour(40 * MIB, 41 * MIB)
    made.taken(40 * MIB)
    assert isinstance(made.start(state(workers=1), 60.0), Split)


def test_a_server_that_many_read_from_gets_several_connections_without_a_measurement() -> None:
    """As long as a client waits, and the blob is large enough."""
    made = plan()
    assert made.target(state(workers=1, least=4)) == 4
    assert made.target(state(workers=1, least=4, wanted=False)) == 1
    assert made.target(state(MIB, workers=1, least=4)) == 1
