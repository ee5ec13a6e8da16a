"""The audit log's file."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.access import audit
from mirror.access.audit import FIELDS, AuditLog, read_audit_log
from mirror.regular_files import NoFile
from tests.support.commands import Commands
from tests.support.mirrors import StartMirror
from tests.support.patience import PATIENCE
from tests.support.pushes import HOSTED, push_image, put_manifest

ENTRY = tuple(f"its {name}" for name in FIELDS)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_what_is_noted_is_read_again(tmp_path: Path) -> None:
    """Every field, those without a value left out; in order; for its owner alone; closing writes what is left."""
    file = tmp_path / "logs" / "audit.log"
    log = AuditLog(file)
    log.note(*ENTRY)
    log.note("bob", *[""] * (len(FIELDS) - 1))
    log.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first, second = read_audit_log(file)
    assert {name: first[name] for name in FIELDS} == dict(zip(FIELDS, ENTRY, strict=True))
    assert set(second) == {"time", "user"}
    assert second["time"].endswith("Z")


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """As logrotate does it. What was before is read too, where it is beside; lines of others, and halves of lines, are passed over."""
    file = tmp_path / "audit.log"
    log = AuditLog(file)
    log.note("one", *ENTRY[1:])
    until(lambda: file.stat().st_size > 0)
    file.rename(tmp_path / "audit.log.1")
    log.note("two", *ENTRY[1:])
    until(file.exists)
    log.close()
    with open(file, "a") as opened:
        opened.write('[1]\n{"user": "half')
    assert [entry["user"] for entry in read_audit_log(file)] == ["one", "two"]
    with pytest.raises(NoFile):
        list(read_audit_log(tmp_path / "nothing"))


def test_a_disk_that_refuses_costs_lines_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is never kept waiting; what was lost is counted in the log itself."""
    monkeypatch.setattr(audit, "_MOST_WAITING", 3)
    file = tmp_path / "audit.log"
    log = AuditLog(file)
    for _ in range(100):
        log.note(*ENTRY)
    log.close()
    entries = list(read_audit_log(file))
    lost = sum(entry.get("dropped_lines", 0) for entry in entries)
    assert lost + sum("user" in entry for entry in entries) == 100
    (tmp_path / "logs").mkdir()
    other = AuditLog(tmp_path / "logs" / "audit.log")
    (tmp_path / "logs" / "audit.log").unlink()
    (tmp_path / "logs").rmdir()
    (tmp_path / "logs").write_text("a file where the folder was")
    other.note(*ENTRY)
    other.close()


async def test_who_pushed_is_found_by_tag_and_by_digest(start: StartMirror, tmp_path: Path) -> None:
    """One line for each push, with the digest of what was pushed by a tag; one that failed has none."""
    log = tmp_path / "audit.log"
    mirror = await start(settings={"hosted": HOSTED, "server": {"audit_log": str(log)}})
    digest, body = await push_image(mirror.session, "team/app", "1")
    assert (await put_manifest(mirror.session, "team/app", "2", body[:-5])).status == 400
    await asyncio.to_thread(until, lambda: log.read_text().count('"reference": "2"') == 1)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    pushed = [(one["reference"], one.get("digest"), one["verdict"]) for one in entries if "reference" in one]
    assert [one for one in pushed if one[0] in ("1", "2")] == [("1", str(digest), "allowed"), ("2", None, "allowed")]
    for image in ("team/app:1", str(digest)):
        done = await Commands(tmp_path / "cache").run("who", image, MIRROR_SERVER__AUDIT_LOG=str(log))
        assert "push" in done.stdout, image
