"""The alert rules, by Prometheus' own tool."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.programs import require, run
from tests.test_docs import metric_names

RULES = Path(__file__).parents[2] / "grafana" / "alerts.yaml"
CASES = Path(__file__).parent / "alerts.test.yaml"


def test_the_rules_are_well_formed_and_ask_for_metrics_that_exist() -> None:
    """By promtool's judgement, and by the program's own list."""
    require("promtool")
    assert "SUCCESS" in run("promtool", "check", "rules", str(RULES))
    expressions = " ".join(line for line in RULES.read_text().splitlines() if "summary" not in line and "description" not in line)
    asked = set(re.findall(r"\b(?:mirror|registry_proxy)_[a-z_]+", expressions))
    assert asked
    assert asked <= metric_names()


def test_each_alert_fires_when_it_should_and_not_when_it_should_not() -> None:
    """promtool runs the cases in alerts.test.yaml; there is a case for each alert."""
    require("promtool")
    assert "SUCCESS" in run("promtool", "test", "rules", str(CASES))
    fired = re.findall(r"- eval_time: \w+\n +alertname: (\w+)\n +exp_alerts:\n", CASES.read_text())
    quiet = re.findall(r"alertname: (\w+), exp_alerts: \[\]", CASES.read_text())
    assert set(fired) == set(quiet) == set(re.findall(r"alert: (\w+)", RULES.read_text()))
