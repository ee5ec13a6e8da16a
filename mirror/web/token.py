"""The admin token that is generated if none is set."""

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
"""In the cache directory, readable by its owner only."""
SHORTEST = 16
_LARGEST = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def token_in(folder: Path) -> tuple[str, bool]:
    """Returns the token of a cache directory, and True if it was made just now. Raises OSError.

    The token is stored as it is, not hashed: whoever can read it can change the cache without it. All processes on the directory find the same one. If the disk
    is full, it is a token that nobody knows.
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
