"""Whether a folder's disk takes what is written, and has room: tried from time to time, since permissions say nothing of a full, read-only or failing one."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path

from mirror.disk_room import measure

log = logging.getLogger(__name__)

_INTERVAL = 5.0
_SLOW = 15.0
"""Seconds after which an attempt that has not ended is reported."""


class DiskProbe:
    """Tries in a thread of its own, which may hang with the disk; nobody waits for it."""

    def __init__(self, folder: Path, min_free: float, interval: float = _INTERVAL, slow: float = _SLOW) -> None:
        """Tries every `interval` seconds until `close`; `slow` is how long an attempt may take. `min_free` is the share of the disk that stays free."""
        self._folder = folder
        self._min_free = min_free
        self._interval = interval
        self._slow = slow
        self._fault = ""
        self._began: float | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="disk probe", daemon=True).start()

    @property
    def fault(self) -> str:
        """A sentence about what is wrong with the disk; empty where nothing is."""
        began = self._began
        if began is not None and time.monotonic() - began > self._slow:
            return self._unwritable(f"it has not taken a byte for {time.monotonic() - began:.0f} s")
        return self._fault

    def close(self) -> None:
        """Ends the attempts, without waiting for one that hangs."""
        self._stop.set()

    def _run(self) -> None:
        writable = roomy = True
        while not self._stop.is_set():
            self._began = time.monotonic()
            reason, shortage = write_a_byte(self._folder), self._shortage()
            self._fault = self._unwritable(reason) if reason is not None else shortage
            self._began = None
            before, (writable, roomy) = (writable, roomy), (reason is None, not shortage)
            if before != (writable, roomy):
                log.warning("%s", self._fault or f"the disk of {self._folder} can be written again, and has room")
            self._stop.wait(self._interval)

    def _shortage(self) -> str:
        try:
            return measure(self._folder, self._min_free).shortage(self._folder)
        except OSError as error:
            return self._unwritable(str(error.strerror))

    def _unwritable(self, reason: str) -> str:
        return f"the cache directory {self._folder} cannot be written ({reason}): everything is fetched, nothing kept"


def write_a_byte(folder: Path) -> str | None:
    """Writes a byte into a new file, to the disk itself, and removes it. Returns why that failed; None where it did not. Blocks."""
    path = folder / f".probe-{os.getpid()}-{threading.get_native_id()}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, b"\0")
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return str(error.strerror)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return None
