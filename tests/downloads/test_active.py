"""The board: what is being downloaded, from the files of all processes; and the month's history."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from mirror.downloads.active import read
from mirror.storage.disk.catalog import history
from mirror.storage.disk.catalog.schema import connect
from mirror.storage.inventory import Day

LINE = {
    "digest": "sha256:1",
    "repository": "docker.io/library/app",
    "size": 100,
    "have": 50,
    "rate": 10.0,
    "readers": 1,
    "began": 1.0,
    "leads": True,
    "ended": False,
    "error": "",
}


def write(folder: Path, name: str, *lines: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"downloads": lines}))
    return path


def test_a_blob_is_shown_as_its_leader_has_it(tmp_path: Path) -> None:
    """With everybody's readers; how long it will take is told by size and rate."""
    write(tmp_path, "1.json", {**LINE, "leads": False, "have": 0, "readers": 2})
    write(tmp_path, "2.json", LINE, {**LINE, "digest": "sha256:2", "size": None})
    first, second = read(tmp_path)
    assert (first.readers, first.have, first.left) == (3, 50, 5.0)
    assert second.left is None


def test_the_dead_are_not_believed_and_cleared_away(tmp_path: Path) -> None:
    """A file that nobody writes any more is ignored after ten seconds and gone after a minute."""
    silent, dead = write(tmp_path, "1.json", LINE), write(tmp_path, "2.json", LINE)
    os.utime(silent, (time.time() - 20,) * 2)
    os.utime(dead, (time.time() - 100,) * 2)
    assert read(tmp_path) == []
    assert silent.exists()
    assert not dead.exists()
    assert read(tmp_path / "none") == []


def test_files_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    """Whatever they hold."""
    write(tmp_path, "0.json", LINE)
    for number, text in enumerate(
        ("", "[]", "{", '{"downloads": 5}', '{"downloads": [{}]}', '{"downloads": [[]]}', "[" * 100_000)
    ):
        (tmp_path / f"{number + 1}.json").write_text(text)
    write(tmp_path, "9.json", {**LINE, "have": "x"})
    (tmp_path / "8.json").write_text(json.dumps({"downloads": [{**LINE, "have": float("inf")}]}))
    (tmp_path / "7.json").write_bytes(b"\xff\xfe")
    assert len(read(tmp_path)) == 1


def test_the_history_is_a_month_of_days_and_sizes(tmp_path: Path) -> None:
    """Samples of one ten minutes are one, those older than a month go, and days without traffic are there."""
    now = time.time()
    with closing(connect(tmp_path / "content.sqlite")) as db:
        db.execute("INSERT INTO content (digest, size, used) VALUES ('sha256:1', 1000, 0)")
        for back in (40 * 86400, 3600, 5, 0):
            history.sample(db, now - back)
        today = str(datetime.fromtimestamp(now, UTC).date())
        db.execute(
            "INSERT INTO traffic VALUES (?, 'docker.io', 'blob', 4, 3, 100, 400), ('2001-01-01', 'docker.io', 'blob', 1, 1, 1, 1)",
            (today,),
        )
        found = history.read(db, now)
    assert 2 <= len(found.sizes) <= 3
    assert {size for _, size in found.sizes} == {1000}
    assert len(found.days) == 30
    assert found.days[-1] == Day(today, 4, 3, 100, 400)
    assert found.days[0].requests == 0
    assert isinstance(db, sqlite3.Connection)
