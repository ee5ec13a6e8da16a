"""What a scanner's report says (mirror/scans/reports.py): SARIF and CycloneDX, as Trivy, Grype and OSV-Scanner write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mirror.scans.reports import read_report


def sarif(results: list[Any], rules: list[Any] | None = None) -> bytes:
    return json.dumps(
        {"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x", "rules": rules or []}}, "results": results}]}
    ).encode()


def rule(name: str, score: Any) -> dict[str, Any]:
    return {"id": name, "properties": {"security-severity": score}}


def cyclonedx(*vulnerabilities: Any) -> bytes:
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "vulnerabilities": vulnerabilities}).encode()


@pytest.mark.parametrize(
    ("report", "counts"),
    [
        (sarif([]), {}),
        (sarif([{"ruleId": "A", "ruleIndex": 0}, {"ruleId": "A"}], [rule("A", "9.8")]), {"critical": 2}),
        (sarif([{"ruleId": name} for name in "ABCD"], [rule("A", "7.0"), rule("B", 4.0), rule("C", "0.1"), rule("D", "0.0")]), {"high": 1, "medium": 1, "low": 1, "none": 1}),
        (sarif([{"ruleId": "A", "properties": {"security-severity": "2"}}], [rule("A", "9.8")]), {"low": 1}),
        (sarif([{"level": "error"}, {"level": "warning"}, {"level": "note"}, {"level": "none"}, {}]), {"high": 1, "medium": 2, "low": 1, "none": 1}),
        (sarif([{"ruleId": "A"}], [{"id": "A", "defaultConfiguration": {"level": "error"}}]), {"high": 1}),
        (sarif([{"level": "error", "suppressions": [{"kind": "external"}]}, {"level": "error", "kind": "pass"}, 7]), {}),
        (sarif([{"ruleIndex": 99, "ruleId": 7, "level": 7}, {"ruleIndex": -1, "properties": 7}], [7]), {"medium": 2}),
        (sarif([{"ruleId": "A", "level": "note"}], [rule("A", "NaN")]), {"low": 1}),
        (cyclonedx({"ratings": [{"score": 10**400, "severity": "what?"}]}, {"ratings": [{"score": 10**400}, {"score": 9.9}]}), {"low": 1, "critical": 1}),
        (sarif([{"ruleId": "A", "level": "note"}], [rule("A", 10**400)]), {"low": 1}),
        (cyclonedx(), {}),
        (b'{"bomFormat": "CycloneDX"}', {}),
        (cyclonedx({"ratings": [{"severity": "low"}, {"severity": "CRITICAL"}]}), {"critical": 1}),
        (cyclonedx({"ratings": [{"score": 7.5}]}, {"ratings": [{"severity": "unknown"}]}, {}), {"high": 1, "low": 2}),
        (cyclonedx({"ratings": [{"severity": "high"}], "analysis": {"state": "not_affected"}}), {}),
        (cyclonedx({"ratings": [{"severity": "info"}, 7]}, 7, {"ratings": 7, "analysis": 7}), {"none": 1, "low": 1}),
    ],
)  # fmt: skip
def test_findings_are_counted_by_severity(report: bytes, counts: dict[str, int]) -> None:
    """By score, else by the word for it; what was suppressed, or does not affect, is none, and what nobody has rated is one."""
    assert read_report(report) == counts


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "printed no JSON"),
        (b"fatal: no database", "printed no JSON"),
        (b"[]", "neither SARIF nor CycloneDX"),
        (b'{"runs": 7}', "neither SARIF nor CycloneDX"),
        (b'{"bomFormat": "SPDX"}', "neither SARIF nor CycloneDX"),
        (b"[" * 100_000, "nested too deeply|printed no JSON"),
        (b"\xff\xfe\x00", "printed no JSON"),
    ],
)
def test_what_is_no_report_is_an_error(data: bytes, why: str) -> None:
    """Never taken for a report without findings."""
    with pytest.raises(ValueError, match=why):
        read_report(data)
