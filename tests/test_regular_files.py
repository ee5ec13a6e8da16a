"""What counts as no file, and what is another matter."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.regular_files import NoFile, open_file, read_file, status_of


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("secret")
    path.symlink_to(path.parent / "elsewhere")


OTHERS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a folder": Path.mkdir,
    "a link": _link,
    "a link to a terminal": lambda path: path.symlink_to("/dev/ptmx"),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_what_is_no_regular_file_is_no_file(tmp_path: Path, make: Callable[[Path], None], flags: int) -> None:
    """Whatever lies under the name, opening it neither waits for another process nor follows a link: there is no file, or the system refuses."""
    make(path := tmp_path / "name")
    with pytest.raises(IsADirectoryError if path.is_dir() and flags != os.O_RDONLY else NoFile):
        open_file(path, flags)
    assert status_of(path) is None


def test_a_link_is_followed_on_request_alone(tmp_path: Path) -> None:
    """As Kubernetes mounts secrets; what a link leads to must be a regular file too."""
    _link(tmp_path / "name")
    assert read_file(tmp_path / "name", 100, follow=True) == b"secret"
    (tmp_path / "terminal").symlink_to("/dev/ptmx")
    with pytest.raises(NoFile):
        read_file(tmp_path / "terminal", 100, follow=True)


def test_a_lack_of_descriptors_is_not_a_lack_of_the_file(tmp_path: Path) -> None:
    """The file is there, and cannot be opened just now: that is EMFILE, never absence; with descriptors again it opens."""
    (path := tmp_path / "name").write_text("here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest that is free: the next to be given out.
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError) as raised:
            open_file(path, os.O_RDONLY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE
    assert not isinstance(raised.value, FileNotFoundError)
    assert read_file(path, 100) == b"here"


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ENOMEM, errno.ENFILE, errno.ESTALE, errno.EINTR])
def test_every_other_error_is_reported(tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says of a file that may well be there is raised as it is, and is never absence."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(os, "stat", fail)
    for ask in (lambda: open_file(tmp_path / "name", os.O_RDONLY), lambda: status_of(tmp_path / "name")):
        with pytest.raises(OSError) as raised:
            ask()
        assert raised.value.errno == error
        assert not isinstance(raised.value, FileNotFoundError)
