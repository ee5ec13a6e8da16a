"""Folders that only their owner can enter, and errors of full disks. mirror/regular_files.py opens files."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from mirror.regular_files import open_file

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that can take no more."""
PASSING = (*FULL, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Errors that say nothing of what is on a disk, and may be over at any time."""


def make_private_folder(path: Path) -> None:
    """Makes a folder that only its owner can enter, or changes an existing one. On a full or read-only disk it does nothing. Raises OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        if error.errno not in (*FULL, errno.EROFS):
            raise


def fault_in_writing(folder: Path) -> int | None:
    """Writes a small file and removes it. Returns the errno of a failure; None if there is none. Blocks."""
    path = folder / f".full-{os.getpid()}"
    try:
        fd = open_file(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.write(fd, bytes(65536))
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return None
