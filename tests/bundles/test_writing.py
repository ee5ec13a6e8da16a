"""Where a bundle's bytes go: pipes and files."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from mirror.bundles.writing import Output
from mirror.storage.slices import FileSlice

MIB = 1024 * 1024
BLOB = os.urandom(3 * MIB + 5)


@pytest.fixture
def blob(tmp_path: Path) -> FileSlice:
    """All of a blob but its first five bytes."""
    (tmp_path / "blob").write_bytes(BLOB)
    return FileSlice(os.open(tmp_path / "blob", os.O_RDONLY), 5, 3 * MIB)


def through_a_pipe(ends: tuple[int, int], blob: FileSlice) -> bytes:
    """What arrives of some bytes and a blob."""
    receive, send = ends
    got: list[bytes] = []
    with open(receive, "rb", closefd=False) as file:
        reader = threading.Thread(target=lambda: got.append(file.read()))
        reader.start()
        output = Output(send)
        output.write(b"header")
        output.copy(blob)
        os.close(send)
        reader.join()
    return got[0]


@pytest.mark.parametrize(("size", "expected"), [(None, MIB), (4096, MIB), (MIB, MIB)])
def test_a_pipe_is_made_to_hold_a_mebibyte(blob: FileSlice, size: int | None, expected: int) -> None:
    """The two programs take turns less often then, which is three times as fast."""
    ends = os.pipe()
    if size is not None:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, size)
    assert through_a_pipe(ends, blob) == b"header" + BLOB[5:]
    assert fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) == expected


def test_a_pipe_that_may_not_grow_is_written_to_as_it_is(blob: FileSlice, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unprivileged user's pipes hold 64 MiB together (pipe(7), "pipe-user-pages-soft")."""
    real = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(fd, command, argument)

    ends = os.pipe()
    before = real(ends[0], fcntl.F_GETPIPE_SZ)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert through_a_pipe(ends, blob) == b"header" + BLOB[5:]
    assert real(ends[0], fcntl.F_GETPIPE_SZ) == before


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_a_file_gets_the_same_bytes(blob: FileSlice, tmp_path: Path, flags: int) -> None:
    """One that is opened for appending too, as by the shell's >>, to which the kernel does not copy."""
    fd = os.open(tmp_path / "lab.tar", flags | os.O_CREAT)
    output = Output(fd)
    output.write(b"header")
    output.copy(blob)
    os.close(fd)
    assert (tmp_path / "lab.tar").read_bytes() == b"header" + BLOB[5:]
