"""The admin token that is made where none is set."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from pathlib import Path

from mirror.file_locks import wait_exclusive

log = logging.getLogger(__name__)

NAME = "admin-token"
"""In the cache directory, readable by its owner alone."""
SHORTEST = 16
_LARGEST = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def token_in(folder: Path) -> tuple[str, bool]:
    """The token that a cache directory keeps, made where it has none; True where it was made now. Raises OSError.

    It is there as it is, not as a hash: who can read it can change the cache without it, and it was printed only once. All processes on the directory find the
    same one. On a full disk it is one that nobody knows.
    """
    try:
        return _kept(folder)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        log.warning(
            "the admin token cannot be kept in %s (%s): nobody can log in until there is room and a restart",
            folder,
            error.strerror,
        )
        return secrets.token_urlsafe(24), False


def _kept(folder: Path) -> tuple[str, bool]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "r+b") as file:
        wait_exclusive(descriptor)
        os.fchmod(descriptor, 0o600)
        known = file.read(_LARGEST).decode(errors="replace").strip()
        if len(known) >= SHORTEST:
            return known, False
        made = secrets.token_urlsafe(24)
        file.seek(0)
        file.truncate()
        file.write(f"{made}\n".encode())
        file.flush()
        os.fsync(descriptor)
        return made, True
