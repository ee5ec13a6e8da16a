"""What processes on one cache directory tell each other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from mirror.storage.disk.statuses import Statuses


def test_each_process_reads_what_all_write(tmp_path: Path) -> None:
    """Until they take it back. Their owner alone can read the files."""
    one, two = Statuses(tmp_path), Statuses(tmp_path)
    one.write(["a"])
    two.write({"b": None})
    one.write(["c"])
    assert sorted(map(str, one.read())) == sorted(map(str, two.read())) == ["['c']", "{'b': None}"]
    assert (tmp_path / "live").stat().st_mode & 0o077 == 0
    one.write(None)
    one.write(None)
    assert two.read() == [{"b": None}]
    two.write(None)
    assert list((tmp_path / "live").iterdir()) == []


def test_the_dead_are_not_believed_and_cleared_away(tmp_path: Path) -> None:
    """A file that nobody writes any more does not count after ten seconds and is removed after a minute."""
    assert Statuses(tmp_path).read() == []
    (tmp_path / "live").mkdir()
    silent, dead = tmp_path / "live" / "1.json", tmp_path / "live" / "2.json"
    for path, age in ((silent, 20), (dead, 100)):
        path.write_text("[]")
        os.utime(path, (time.time() - age,) * 2)
    assert Statuses(tmp_path).read() == []
    assert silent.exists()
    assert not dead.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, None])
def test_what_is_no_json_is_passed_over(tmp_path: Path, content: bytes | None) -> None:
    """Nor does a FIFO hold anybody up."""
    ours = Statuses(tmp_path)
    ours.write(1)
    for name in ("0.json", "zzz.json"):
        if content is None:
            os.mkfifo(tmp_path / "live" / name)
        else:
            (tmp_path / "live" / name).write_bytes(content)
    assert ours.read() == [json.loads("1")]


def test_a_disk_that_takes_nothing_costs_only_that(tmp_path: Path) -> None:
    """No download fails for it."""
    (tmp_path / "file").touch()
    ours = Statuses(tmp_path / "file")
    ours.write(1)
    ours.write(None)
    assert ours.read() == []
