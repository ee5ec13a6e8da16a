"""Sessions that were logged out before they expired: every process on the cache directory knows them, also after a restart."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from mirror.durable import sync_folder
from mirror.regular_files import open_file

log = logging.getLogger(__name__)

NAME = "ended-sessions"
"""In the cache directory: an empty file for each session, named by when it would have expired, in seconds since the epoch, and a number of its own."""


class EndedSessions:
    """The sessions that were logged out. Only the owner of a session can end it, so clients without the token cannot fill the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / NAME
        self._here: set[str] = set()
        """Those that were ended in this process, in case the disk is full."""

    def __contains__(self, session: str) -> bool:
        return session in self._here or os.path.lexists(self._folder / session)

    def add(self, session: str, now: float) -> None:
        """Ends a session, whose name is of decimal and hexadecimal digits and a dot; forgets those that have expired `now`."""
        self._here.add(session)
        self._here = {one for one in self._here if not _expired(one, now)}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(open_file(self._folder / session, os.O_WRONLY | os.O_CREAT))
            sync_folder(self._folder)
            for one in os.listdir(self._folder):
                if _expired(one, now):
                    with contextlib.suppress(OSError):
                        os.unlink(self._folder / one)
        except OSError as error:
            log.warning("a log-out is known to this process only, until it ends: %s", error)


def _expired(session: str, now: float) -> bool:
    expires = session.partition(".")[0]
    return not expires.isdigit() or int(expires) <= now
