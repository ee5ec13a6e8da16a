"""Opening what lies in a cache directory: regular files only, never through a link, and never waiting for the other end of a FIFO or for a device."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that can take no more."""
_NOT_OURS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""Errors of a name under which there is no regular file: nothing, a link, a FIFO or socket, a device."""
PRIVATE = 0o600


class NoFile(FileNotFoundError):
    """There is no regular file of that name."""


def open_file(path: str | Path, flags: int) -> int:
    """A descriptor of a regular file, made by O_CREAT for its owner alone. Raises NoFile where there is something else or nothing; OSError."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, PRIVATE)
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise NoFile(error.errno, error.strerror, str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NoFile(errno.ENOENT, "not a regular file", str(path))
    return fd


def status_of(path: str | Path) -> os.stat_result | None:
    """The status of a regular file; None where there is none of that name. Raises OSError."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def make_private_folder(path: Path) -> None:
    """Makes a folder that its owner alone can enter; one that was there becomes so. A full disk costs only the folder. Raises OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        if error.errno not in (*FULL, errno.EROFS):
            raise


def is_full(folder: Path) -> bool:
    """True where not even a small file can be written for want of room. Blocks."""
    path = folder / f".full-{os.getpid()}"
    try:
        fd = open_file(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.write(fd, bytes(65536))
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in FULL
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return False
