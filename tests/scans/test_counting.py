"""Reports are read in a process of their own, which is bounded."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from pathlib import Path

import pytest

from mirror.scans.counting import count_findings


def sarif(count: int, text: str = "") -> bytes:
    rules = [
        {"id": str(number), "help": {"markdown": text}, "properties": {"security-severity": "7.5"}} for number in range(count)
    ]
    results = [{"ruleId": str(number)} for number in range(count)]
    return json.dumps({"runs": [{"tool": {"driver": {"rules": rules}}, "results": results}]}).encode()


async def test_a_large_report_is_counted(tmp_path: Path) -> None:
    """One with the whole text of each advisory, as OSV-Scanner writes it."""
    report = tmp_path / "report"
    report.write_bytes(sarif(5000, "x" * 6000))
    assert report.stat().st_size > 30_000_000
    assert await count_findings(report) == {"high": 5000}


async def test_a_report_that_takes_too_much_memory_fails_alone(tmp_path: Path) -> None:
    """Not the mirror, which keeps nothing of it, and goes on meanwhile."""
    report = tmp_path / "report"
    # 22 MB that would take more than 540 MB.
    report.write_bytes(b'{"runs": [' + b"{}," * 7_500_000 + b"{}]}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="512 MiB of memory"):
        await count_findings(report)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


async def test_a_reading_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    """As when the mirror stops."""
    report = tmp_path / "report"
    report.write_bytes(sarif(5000, "x" * 6000))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    # Other tests may have left programs to the whole session.
    others = set(children.read_text().split())
    reading = asyncio.create_task(count_findings(report))
    while not set(children.read_text().split()) - others:
        await asyncio.sleep(0.001)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    assert not set(children.read_text().split()) - others


@pytest.mark.parametrize(("data", "why"), [(b"fatal", "it printed no JSON"), (b"[]", "neither SARIF nor CycloneDX")])
async def test_why_there_is_no_count_is_told(tmp_path: Path, data: bytes, why: str) -> None:
    """As `read_report` says it, though it was another process that said so; and what a scanner left there is no module of it."""
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "report").write_bytes(data)
    with pytest.raises(ValueError, match=why):
        await count_findings(tmp_path / "report")
