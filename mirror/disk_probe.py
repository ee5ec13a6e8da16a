"""Whether a folder's disk takes what is written: tried from time to time, since permissions say nothing of a full, read-only or failing one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_INTERVAL = 5.0
_SLOW = 15.0
"""Seconds after which an attempt that has not ended is reported."""


class DiskProbe:
    """Tries in a thread of its own, which may hang with the disk; nobody waits for it."""

    def __init__(self, folder: Path, interval: float = _INTERVAL, slow: float = _SLOW) -> None:
        """Tries every `interval` seconds until `close`; `slow` is how long an attempt may take."""
        self._folder = folder
        self._interval = interval
        self._slow = slow
        self._fault: str | None = None
        self._began: float | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="disk probe", daemon=True).start()

    @property
    def fault(self) -> str | None:
        """Why the last attempt failed; None where it did not."""
        began = self._began
        if began is not None and time.monotonic() - began > self._slow:
            return f"the disk has not taken a byte for {time.monotonic() - began:.0f} s"
        return self._fault

    def close(self) -> None:
        """Ends the attempts, without waiting for one that hangs."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._began = time.monotonic()
            self._fault = write_a_byte(self._folder)
            self._began = None
            self._stop.wait(self._interval)


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
