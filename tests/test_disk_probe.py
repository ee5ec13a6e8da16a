"""A disk that takes nothing is noticed, whatever its permissions say."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from mirror.disk_probe import DiskProbe, write_a_byte
from tests.support.mirrors import until


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_every_way_in_which_a_disk_refuses_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str) -> None:
    """Full, without inodes, read-only, over quota, failing: at whichever step it shows. Nothing is left behind."""
    assert write_a_byte(tmp_path) is None

    def refuse(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        assert write_a_byte(tmp_path) == os.strerror(code)
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_that_hangs_is_told_and_waited_for_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault says for how long; it is gone when the disk goes on."""
    released, fsync = threading.Event(), os.fsync

    def hang(fd: int) -> None:
        assert released.wait(60)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", hang)
    probe = DiskProbe(tmp_path, 0, interval=0.01, slow=0.01)
    try:
        await until(lambda: "it has not taken a byte" in probe.fault)
        released.set()
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        await until(lambda: not probe.fault)
        probe._folder = tmp_path / "gone"
        await until(lambda: os.strerror(errno.ENOENT) in probe.fault)
    finally:
        released.set()
        probe.close()
