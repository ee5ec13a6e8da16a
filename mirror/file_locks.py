"""Advisory locks on open files, flock(2) and fcntl(2): the only module that takes them. The kernel drops a lock when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi0q")


def try_exclusive(fd: int) -> bool:
    """Takes the whole file for ourselves. False where somebody else has it locked. Raises OSError where the file system has no locks."""
    return _try(fd, fcntl.LOCK_EX)


def try_shared(fd: int) -> bool:
    """Takes the whole file beside other readers. False where somebody has it for himself. Raises OSError where the file system has no locks."""
    return _try(fd, fcntl.LOCK_SH)


def wait_exclusive(fd: int) -> None:
    """Waits for the whole file. Blocks. Raises OSError where the file system has no locks."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def wait_shared(fd: int) -> None:
    """Waits for the whole file, beside other readers. Blocks. Raises OSError where the file system has no locks."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def unlock(fd: int) -> None:
    """Gives up the lock. Raises OSError."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def try_byte(fd: int, offset: int) -> bool:
    """Takes one byte of a file that need not exist, for this open file (fcntl(2), "Open file description locks"). False where somebody else has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except BlockingIOError:
        return False
    return True


def unlock_byte(fd: int, offset: int) -> None:
    """Gives up one byte. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
