"""What is being downloaded, as the statuses of all processes say; and the month's history."""

from __future__ import annotations

import math
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mirror.downloads.active import merged
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


def test_a_blob_is_shown_as_its_leader_has_it() -> None:
    """With everybody's readers; how long it will take is told by size and rate."""
    first, second = merged(
        [[{**LINE, "leads": False, "have": 0, "readers": 2}], [LINE, {**LINE, "digest": "sha256:2", "size": None}]]
    )
    assert (first.readers, first.have, first.left) == (3, 50, 5.0)
    assert second.left is None


@pytest.mark.parametrize(
    "status", [5, None, {}, {"a": 1}, [5], [{}], [[]], [{**LINE, "have": "x"}], [{**LINE, "have": math.inf}]]
)
def test_what_makes_no_sense_is_passed_over(status: object) -> None:
    """Another version of the mirror may share the directory."""
    assert len(merged([status, [LINE]])) == 1


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
    assert found.days[-1] == Day(4, 3, 100, 400, date=today)
    assert found.days[0].requests == 0
    assert isinstance(db, sqlite3.Connection)
