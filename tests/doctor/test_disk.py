"""Disks that are full, read-only, too small, or not there; files of secrets that everybody can read."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.doctor import disk
from mirror.doctor.findings import Level
from tests.doctor.conftest import of, one, settings
from tests.support.programs import missing, require_root, run


@pytest.fixture
def small_disk(tmp_path: Path, tree: dict[str, Any]) -> Iterator[Path]:
    """A file system of 4 MiB, as the cache directory."""
    require_root("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        missing(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    tree["cache"]["dir"] = str(folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_disk_that_is_well(tree: dict[str, Any], tmp_path: Path) -> None:
    """Says what is free, and leaves nothing behind; a directory that is not there yet can be made."""
    for folder in (tmp_path / "cache", tmp_path / "later" / "cache"):
        tree["cache"]["dir"] = str(folder)
        found = await disk.examine(settings(tree))
        assert [finding.level for finding in of(found, "disk")][-1] in (Level.OK, Level.ADVICE)
        assert not any(finding.level == Level.PROBLEM for finding in found)
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "later").exists()


async def test_a_disk_that_is_too_small_or_full(tree: dict[str, Any], small_disk: Path) -> None:
    """Too small for max_size is advice, and what it may be; full is a problem."""
    tree["cache"]["max_size"] = "1GiB"
    found = await disk.examine(settings(tree))
    assert any("is in memory (tmpfs)" in finding.message for finding in found)
    (told,) = [finding for finding in found if "no room for cache.max_size" in finding.message]
    assert told.level == Level.ADVICE
    assert "set cache.max_size to 3.61MiB or less" in told.cure
    with contextlib.suppress(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    found = await disk.examine(settings(tree))
    assert any(finding.level == Level.PROBLEM for finding in of(found, "disk"))
    assert any("No space left" in finding.message or "is full" in finding.message for finding in found)


async def test_a_disk_that_is_read_only(tree: dict[str, Any], small_disk: Path) -> None:
    """As file systems become after faults."""
    await asyncio.to_thread(run, "mount", "-o", "remount,ro", str(small_disk))
    told = one(await disk.examine(settings(tree)), "disk")
    assert told.level == Level.PROBLEM
    assert "Read-only file system" in told.message
    assert str(small_disk) in told.message


async def test_a_cache_directory_that_is_a_file(tree: dict[str, Any], tmp_path: Path) -> None:
    """Or lies below one."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        tree["cache"]["dir"] = str(path)
        told = one(await disk.examine(settings(tree)), "disk")
        assert told.level == Level.PROBLEM
        assert "cache.dir (--cache-dir)" in told.cure


async def test_a_password_that_everybody_can_read(tree: dict[str, Any], tmp_path: Path) -> None:
    """Is advice, with the command."""
    password = tmp_path / "password"
    password.write_text("s3cret")
    registry = {"endpoints": ["http://127.0.0.1:1"], "username": "robot", "password_file": str(password)}
    for mode, expected in ((0o644, 1), (0o640, 0)):
        password.chmod(mode)
        assert len(of(await disk.examine(settings(tree, lan=registry)), "settings")) == expected
