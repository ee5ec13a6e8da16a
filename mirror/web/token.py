"""The admin token that is made where none is set."""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
from pathlib import Path

from mirror.durable import create_durably, write_durably
from mirror.regular_files import PRIVATE, NoFile, read_file

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
    path = folder / NAME
    if (known := _known(path)) is not None:
        path.chmod(PRIVATE)
        return known, False
    made = secrets.token_urlsafe(24)
    if create_durably(path, f"{made}\n".encode()):
        return made, True
    if (known := _known(path)) is not None:
        # Another process was quicker.
        return known, False
    # It is empty, too short, or no regular file.
    write_durably(path, f"{made}\n".encode())
    return made, True


def _known(path: Path) -> str | None:
    with contextlib.suppress(NoFile):
        known = read_file(path, _LARGEST).decode(errors="replace").strip()
        if len(known) >= SHORTEST:
            return known
    return None
