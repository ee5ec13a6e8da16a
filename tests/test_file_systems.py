"""Which file systems a cache may be on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror import file_systems
from mirror.doctor import disk
from mirror.doctor.findings import Level
from tests.doctor.conftest import settings, tree
from tests.support.patience import PATIENCE
from tests.support.programs import missing, require, require_root

__all__ = ["tree"]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of FUSE, with a space in its name."""
    require("bindfs")
    require_root("mount")
    (tmp_path / "server").mkdir()
    folder = tmp_path / "a share"
    folder.mkdir()
    done = subprocess.run(["bindfs", tmp_path / "server", folder], capture_output=True, check=False)
    if done.returncode:
        missing(f"no FUSE file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_mirror_does_not_start_on_a_network_file_system(shared: Path) -> None:
    """Nor in a folder of it that is not there yet: it says why and what to set, and writes nothing."""
    for folder in (shared, shared / "later" / "cache"):
        done = subprocess.run(
            [sys.executable, "-m", "mirror", "serve", "--listen", "127.0.0.1:0", "--cache-dir", folder],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 1
        assert f"cannot start: the cache directory {folder} is on a network file system (fuse)" in done.stderr
        assert "--cache-dir" in done.stderr
    assert list(shared.iterdir()) == []


async def test_doctor_says_so_too(shared: Path, tree: dict[str, Any]) -> None:
    """A problem, with what to set; a folder of the same disk that is not below the mount is none."""
    tree["cache"]["dir"] = str(shared)
    found = [finding for finding in await disk.examine(settings(tree)) if "network file system (fuse)" in finding.message]
    assert [finding.level for finding in found] == [Level.PROBLEM]
    tree["cache"]["dir"] = str(shared.parent / "server")
    assert not any("network" in finding.message for finding in await disk.examine(settings(tree)))


def test_a_mount_that_covers_another_counts(shared: Path) -> None:
    """What is asked is the mount that a file would be written to, not the one with the longest name."""
    assert file_systems.kind_of(shared) == "fuse"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared], check=True)
    try:
        assert file_systems.kind_of(shared / "later") == "tmpfs"
    finally:
        subprocess.run(["umount", shared], check=True)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs")),
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "9p", "virtiofs", "fuseblk")),
        *((kind, False) for kind in ("fuse.mergerfs", "fuse.shfs", "fuse.fuse-overlayfs", "fuse.grpcfuse", "")),
    ],
)
def test_kinds(kind: str, refused: bool) -> None:
    """Network file systems, and FUSE unless it stands for disks of this machine; what is unknown is not held against anybody."""
    assert file_systems.is_network(kind) is refused


def test_a_folder_that_cannot_be_looked_at_is_unknown(tmp_path: Path) -> None:
    """No error: whether it can be used is found out, and said, when it is."""
    (tmp_path / "file").write_text("")
    assert file_systems.kind_of(tmp_path / "file") == ""
    assert file_systems.kind_of(tmp_path / "file" / "below") == ""
    assert file_systems.kind_of(tmp_path / ("x" * 300)) == ""
