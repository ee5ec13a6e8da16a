"""The simulation of a fleet says what was measured, and docs/scale.md what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.fleet.__main__ import SHARES, by_formula, main
from benchmarks.fleet.model import MEASURED, MEASURED_LOAD, Fleet, Load, simulate

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
GB = 1e9


@pytest.mark.parametrize("name", MEASURED)
def test_it_says_what_was_measured(name: str) -> None:
    """Within 3 %: of a fleet, of mirrors that share nothing, and of one. The registry sends once to a fleet, and once to each that shares nothing."""
    fleet, seconds = MEASURED[name]
    found = simulate(fleet, MEASURED_LOAD)
    assert found.seconds == pytest.approx(seconds, rel=0.03)
    assert found.upstream == pytest.approx(sum(MEASURED_LOAD.layers) * (1 if fleet.shares else fleet.mirrors))
    copies = fleet.mirrors - 1 if fleet.shares else 0
    assert found.between == pytest.approx(sum(MEASURED_LOAD.layers) * copies, rel=0.01)


def test_no_card_sends_more_than_it_can() -> None:
    """More nodes, smaller cards and a slower registry never make it faster."""
    load = Load(40, [share * GB for share in SHARES], GB)
    base = simulate(Fleet(4, GB, 0.5 * GB), load).seconds
    assert base >= 40 * GB / (4 * GB)
    assert simulate(Fleet(4, GB, 0.5 * GB), Load(80, load.layers, GB)).seconds > base
    assert simulate(Fleet(4, GB / 2, 0.5 * GB), load).seconds > base
    assert simulate(Fleet(4, GB, 0.05 * GB), load).seconds >= 20.0
    assert simulate(Fleet(4, GB, 0.5 * GB), Load(40, load.layers, GB, spread=100.0)).seconds > base
    with pytest.raises(ValueError, match="expected"):
        simulate(Fleet(0, GB, GB), load)


def test_the_page_has_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """The mirrors by the formula, and the seconds that they take, of each number of nodes."""
    assert main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("by the formula")]
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| (\d+)\b[^|]*\| ([\d,]+) s", PAGE, re.MULTILINE)
    assert [(nodes, mirrors) for nodes, _, mirrors, _ in rows] == [(line[0], line[1]) for line in lines]
    assert len(rows) == 3
    for (nodes, gb, mirrors, seconds), line in zip(rows, lines, strict=True):
        count = int(nodes.replace(",", ""))
        assert (int(gb.replace(",", "")), int(mirrors)) == (count * 5, by_formula(count, 5, 600, 1.1))
        assert float(seconds.replace(",", "")) == pytest.approx(float(line[2].replace(",", "")), rel=0.02)
