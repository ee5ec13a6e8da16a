"""The harness itself, at toy sizes, so that it does not rot."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import MEASUREMENTS, run
from tests.benchmarks.measure import Scale
from tests.benchmarks.report import COLD_BLOB
from tests.support.programs import require


def test_the_harness_runs_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Every measurement gives a figure for the mirror, and in this one, which is no matter of speed, the right one."""
    require("docker-registry", "nginx", "wrk")
    scale = Scale(rounds=1, seconds=1, blob=2_000_000, shared=2_000_000, huge=5_000_000, readers=5, cached=50)
    figures = run(scale, MEASUREMENTS)
    assert all(figure["values"]["mirror"] > 0 for figure in figures.values())
    assert figures["10 clients, upstream bytes ÷ blob"]["values"]["mirror"] == pytest.approx(1.0, abs=0.01)
    assert {figure["verdict"] for figure in figures.values() if "bar" in figure} <= {"pass", "FAIL"}
    assert "mirror ÷ it" in capsys.readouterr().out


def test_a_bar_is_judged_against_its_peer_alone() -> None:
    """A figure at the bar passes, one beyond it fails, and a peer that is not there is no failure."""
    assert COLD_BLOB.verdict({"mirror": 1.5, "docker-registry 2.8": 1.0, "nginx": 0.1}) == "pass"
    assert COLD_BLOB.verdict({"mirror": 1.51, "docker-registry 2.8": 1.0}) == "FAIL"
    assert COLD_BLOB.verdict({"mirror": 1.5}).startswith("not judged")
