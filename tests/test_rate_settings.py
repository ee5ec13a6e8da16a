"""Settings of caps on the rate: each value is taken with its documented meaning, or refused in words that name the setting and what to write (docs/upstreams.md)."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import pytest

from mirror.config import ConfigError, load, rates_at

HOURS = {"from": "08:00", "to": "18:00", "rate": "2MB"}
MB = 1_000_000


def rates(tree: dict[str, Any], clock: str = "12:00") -> tuple[int, dict[str, int]]:
    """The caps at a time of the day."""
    when = time.mktime((2026, 11, 29, int(clock[:2]), int(clock[3:]), 30, 0, 0, -1))
    return rates_at(load(None, {}, tree), when)


def fault(tree: dict[str, Any]) -> str:
    """The only fault of settings."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, tree)
    (found,) = caught.value.faults
    return found.replace(" (on the command line)", "").split("; found")[0]


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (0, 0),
        ("0", 0),
        (1000, 1000),
        ("1000", 1000),
        ("1KB", 1000),
        ("2MB", 2 * MB),
        ("2 MB", 2 * MB),
        (" 2MB ", 2 * MB),
        ("2mb", 2 * MB),
        ("1.5MiB", 1_572_864),
        ("2MB/s", 2 * MB),
        ("2MBps", 2 * MB),
        ("1 MiB/s", 1_048_576),
    ],
)
def test_rates_that_are_taken(value: object, rate: int) -> None:
    """Bytes a second, as the settings in force are shown too; 0 is no limit."""
    assert rates({"upstream": {"max_rate": value}}) == (rate, {})
    assert rates({"upstream": {"rate": [{**HOURS, "rate": value}], "max_rate": "9GB"}}) == (rate, {})
    expected = {"docker.io": rate} if rate else {}
    assert rates({"registries": {"docker.io": {"max_rate": value}}}) == (0, expected)
    assert rates({"upstream": {"rate": [{**HOURS, "rate": value, "registry": "docker.io"}]}}) == (0, expected)


SUCH_AS = 'bytes a second such as "2MB" or "500KiB" are expected, or 0'
AT_LEAST = "at least 1KB a second is expected, or 0"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((value, SUCH_AS) for value in (-1, "-1MB", "fast", "", "2,5MB", "1e6", 1.5, True, False, "inf", "9999999TB", ["2MB"])),
        (10, f"{AT_LEAST}: is 10MB meant?"),
        ("10", f"{AT_LEAST}: is 10MB meant?"),
        ("500B", AT_LEAST),
        ("10Mbit", "bytes a second are expected, not bits: write 1.25MB"),
        ("10 Mbit/s", "bytes a second are expected, not bits: write 1.25MB"),
        ("10mbps", "bytes a second are expected, not bits: write 1.25MB"),
        ("10Mb", "bytes a second are expected, not bits: write 1.25MB"),
        ("100Mb/s", "bytes a second are expected, not bits: write 12.5MB"),
        ("1gbit", "bytes a second are expected, not bits: write 0.125GB"),
        ("8000bps", "bytes a second are expected, not bits: write 1000B"),
    ],
)
def test_rates_that_are_refused(value: object, words: str) -> None:
    """Negative, without a number or without its unit, and bits. The setting is named wherever the rate stands."""
    assert fault({"upstream": {"max_rate": value}}) == f"upstream.max_rate: {words}"
    assert fault({"registries": {"ghcr.io": {"max_rate": value}}}) == f'registries."ghcr.io".max_rate: {words}'
    assert fault({"upstream": {"rate": [HOURS, {**HOURS, "rate": value}]}}) == f"upstream.rate.1.rate: {words}"


@pytest.mark.parametrize(
    ("begin", "end", "held", "free"),
    [
        ("08:00", "18:00", ["08:00", "17:59"], ["07:59", "18:00"]),
        ("8:00", "18:00", ["08:00"], ["07:59"]),
        (" 08:00", "18:00:00", ["08:00", "17:59"], ["18:00"]),
        (dt.time(8), dt.time(18), ["08:00", "17:59"], ["18:00"]),
        ("22:00", "06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "21:59"]),
        ("22:00", "24:00", ["22:00", "23:59"], ["00:00"]),
        ("22:00", "00:00", ["22:00", "23:59"], ["00:00"]),
        ("24:00", "06:00", ["00:00", "05:59"], ["06:00", "23:59"]),
        ("00:00", "24:00", ["00:00", "12:00", "23:59"], []),
        ("24:00", "00:00", ["00:00", "12:00", "23:59"], []),
        ("08:00", "08:00", ["00:00", "07:59", "08:00", "23:59"], []),
        ("23:59", "00:00", ["23:59"], ["23:58", "00:00"]),
    ],
)
def test_hours_that_are_taken(begin: object, end: object, held: list[str], free: list[str]) -> None:
    """Over midnight where the end is before the beginning, and all day where they are the same; times of TOML too."""
    tree = {"upstream": {"rate": [{"from": begin, "to": end, "rate": "2MB"}]}}
    assert [rates(tree, clock)[0] for clock in held] == [2 * MB] * len(held)
    assert [rates(tree, clock)[0] for clock in free] == [0] * len(free)


@pytest.mark.parametrize(
    "value", ["8", "8am", "08.00", "25:00", "24:01", "08:60", "-1:00", "08:00:30", "", 8, 800, True, dt.time(8, 0, 30)]
)
@pytest.mark.parametrize("name", ["from", "to"])
def test_hours_that_are_refused(name: str, value: object) -> None:
    """With the form that is expected."""
    words = f'upstream.rate.0.{name}: a time of day such as "08:00" is expected'
    assert fault({"upstream": {"rate": [{**HOURS, name: value}]}}) == words


@pytest.mark.parametrize(
    ("clock", "everything", "docker"),
    [
        ("09:00", 2 * MB, 5 * MB),
        ("12:00", 2 * MB, 3 * MB),
        ("18:00", 1 * MB, 5 * MB),
        ("20:00", 9 * MB, 5 * MB),
        ("23:30", 0, 5 * MB),
    ],
)
def test_of_hours_that_overlap_the_first_counts(clock: str, everything: int, docker: int) -> None:
    """For all registries, and for each by itself; 0 lifts the limit even where a later entry has one."""
    hours = [
        {"from": "08:00", "to": "18:00", "rate": "2MB"},
        {"from": "12:00", "to": "19:00", "rate": "1MB"},
        {"from": "23:00", "to": "01:00", "rate": 0},
        {"from": "22:00", "to": "24:00", "rate": "1MB"},
        {"from": "12:00", "to": "13:00", "rate": "3MB", "registry": "docker.io"},
        {"from": "12:00", "to": "14:00", "rate": "4MB", "registry": "docker.io"},
    ]
    tree = {"upstream": {"max_rate": "9MB", "rate": hours}, "registries": {"docker.io": {"max_rate": "5MB"}}}
    assert rates(tree, clock) == (everything, {"docker.io": docker})


def test_a_registrys_rate_may_be_above_that_of_all() -> None:
    """Both hold, so the lower one counts in effect."""
    tree = {"upstream": {"max_rate": "2MB"}, "registries": {"docker.io": {"max_rate": "90MB"}}}
    assert rates(tree) == (2 * MB, {"docker.io": 90 * MB})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        *(
            (
                {"rate": value},
                "upstream.rate: tables are expected, each under [[upstream.rate]], with two brackets; a limit at all hours is max_rate",
            )
            for value in ("2MB", HOURS, 2_000_000, ["2MB"])
        ),
        ({"rate": [{"to": "18:00", "rate": "2MB"}]}, "upstream.rate.0.from: Field required"),
        ({"rate": [{"from": "08:00", "rate": "2MB"}]}, "upstream.rate.0.to: Field required"),
        ({"rate": [{"from": "08:00", "to": "18:00"}]}, "upstream.rate.0.rate: Field required"),
        ({"rate": [{**HOURS, "max_rate": "2MB"}]}, "upstream.rate.0.max_rate: there is no such setting; is 'rate' meant?"),
        ({"rate": [{**HOURS, "until": "18:00"}]}, "upstream.rate.0.until: there is no such setting"),
        ({"rate": [{**HOURS, "registry": "ghcr.oi"}]}, "upstream.rate: 'ghcr.oi' is not mirrored; is 'ghcr.io' meant?"),
        ({"rate": [{**HOURS, "registry": "GHCR.io"}]}, "upstream.rate: 'GHCR.io' is not mirrored; is 'ghcr.io' meant?"),
        (
            {"rate": [{**HOURS, "registry": "index.docker.io"}]},
            "upstream.rate: 'index.docker.io' is not mirrored; is 'docker.io' meant?",
        ),
        (
            {"rate": [{**HOURS, "registry": "harbor.lan:5000"}]},
            "upstream.rate: 'harbor.lan:5000' is not mirrored; give it a table of its own under registries",
        ),
    ],
)
def test_other_faults_of_hours(tree: dict[str, Any], words: str) -> None:
    """Each is named with what to write."""
    assert fault({"upstream": tree}) == words
