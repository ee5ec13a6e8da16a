"""The harness itself, at toy sizes, so that it does not rot."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import run
from tests.benchmarks.measure import Scale
from tests.support.programs import require


def test_the_harness_runs_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Every measurement gives a figure for the mirror, and in this one, which is no matter of speed, the right one."""
    require("docker-registry", "nginx", "wrk")
    scale = Scale(rounds=1, seconds=1, blob=2_000_000, shared=2_000_000, huge=5_000_000, readers=5, cached=50)
    figures = run(scale, ("manifests", "warm", "cold", "crowd", "memory", "start"))
    assert all(figure["mirror"] > 0 for figure in figures.values())
    assert figures["10 clients, upstream bytes ÷ blob"]["mirror"] == pytest.approx(1.0, abs=0.01)
    assert "mirror ÷ it" in capsys.readouterr().out
