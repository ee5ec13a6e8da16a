"""What a scanner's report says: how many findings of which severity. SARIF (OASIS, 2.1.0) and CycloneDX (ECMA-424) as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mirror.storage.scans import SEVERITIES, worse

_LEVELS = {"error": "high", "warning": "medium", "note": "low", "none": "none"}
"""Severities of SARIF's levels, for findings without a score (SARIF 3.27.10)."""
_SCORES = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.1, "low"))
"""The lowest score of each severity (CVSS 3.1, "Qualitative Severity Rating Scale")."""
_OTHERS = {"info": "none", "informational": "none", "negligible": "low", "moderate": "medium", "important": "high"}
_HARMLESS = ("not_affected", "false_positive", "resolved", "resolved_with_pedigree")
"""States of a CycloneDX analysis in which a vulnerability does not count."""


def read_report(data: bytes) -> Mapping[str, int]:
    """Returns the number of findings of each severity. Raises ValueError if it is no report of a known form."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it printed no JSON: {error}") from None
    if isinstance(document, dict) and isinstance(document.get("runs"), list):
        return Counter(_of_sarif(document["runs"]))
    if isinstance(document, dict) and document.get("bomFormat") == "CycloneDX":
        return Counter(_of_cyclonedx(_list(document, "vulnerabilities")))
    raise ValueError("it printed JSON that is neither SARIF nor CycloneDX")


def _of_sarif(runs: list[Any]) -> Iterator[str]:
    for run in runs:
        rules = _list(_object(_object(_object(run), "tool"), "driver"), "rules")
        by_id = {str(rule.get("id")): rule for rule in rules if isinstance(rule, dict)}
        for result in _list(_object(run), "results"):
            if (
                not isinstance(result, dict)
                or _list(result, "suppressions")
                or result.get("kind", "fail") not in ("fail", "open")
            ):
                continue
            index = result.get("ruleIndex")
            listed = rules[index] if isinstance(index, int) and 0 <= index < len(rules) else None
            rule = _object(listed) or by_id.get(str(result.get("ruleId")), {})
            # "security-severity" is GitHub's, and what Trivy and Grype write. OSV-Scanner 1.9 writes no score.
            scores = [_object(one, "properties").get("security-severity") for one in (result, rule)]
            default = _object(rule, "defaultConfiguration").get("level", "warning")
            yield next(
                (severity for score in scores if (severity := _by_score(score)) is not None),
                _LEVELS.get(str(result.get("level", default)), "medium"),
            )


def _of_cyclonedx(vulnerabilities: list[Any]) -> Iterator[str]:
    for one in vulnerabilities:
        if not isinstance(one, dict) or _object(one, "analysis").get("state") in _HARMLESS:
            continue
        found = []
        for rating in _list(one, "ratings"):
            named = str(_object(rating).get("severity", "")).lower()
            severity = named if named in SEVERITIES else _OTHERS.get(named) or _by_score(_object(rating).get("score"))
            if severity is not None:
                found.append(severity)
        # What nobody has rated is a finding all the same.
        yield worse(found) or "low"


def _by_score(score: Any) -> str | None:
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return next((severity for least, severity in _SCORES if number >= least), "none")


def _object(value: Any, key: str | None = None) -> dict[str, Any]:
    found = value if key is None else value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _list(value: dict[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []
