"""Opening files whose names somebody else may have filled: regular files only, never waiting for the other end of a FIFO or for a device."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NO_REGULAR_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""Errors of a name under which there is no regular file: nothing, a link, a FIFO or socket, a device."""
PRIVATE = 0o600
LARGEST_SECRET = 16 * 1024 * 1024
"""Bytes that are read of a password, a certificate or a bundle of them."""


class NoFile(FileNotFoundError):
    """There is no regular file of that name."""


def open_file(path: str | Path, flags: int, *, follow: bool = False, mode: int = PRIVATE) -> int:
    """Returns a descriptor of a regular file. O_CREAT makes one with `mode`, readable by its owner only by default.

    A symbolic link is followed only on request: Kubernetes mounts secrets as links, but nothing in the cache directory is one.
    Raises NoFile where there is nothing, or something else, and other OSErrors.
    """
    links = 0 if follow else os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | links, mode)
    except OSError as error:
        if error.errno in _NO_REGULAR_FILE:
            raise NoFile(error.errno, error.strerror, str(path)) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NoFile(errno.ENOENT, "not a regular file", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_file(path: str | Path, most: int, *, follow: bool = False) -> bytes:
    """Returns the first `most` bytes of a regular file. Raises NoFile, OSError."""
    with open(open_file(path, os.O_RDONLY, follow=follow), "rb") as file:
        return file.read(most)


def status_of(path: str | Path) -> os.stat_result | None:
    """Returns the status of a regular file, None where there is none of that name. Raises OSError."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_REGULAR_FILE:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None
