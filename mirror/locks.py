"""Locks on files, flock(2) and fcntl(2), and the order in which they are taken. No other module takes one.

========  ======================  ============================================================================================
lock      file                    held
========  ======================  ============================================================================================
CHECK     catalog/asking.lock     by the process that asks upstream whether a tag has changed: one byte for each tag
FETCH     catalog/asking.lock     by the process that asks upstream for a manifest: one byte for each reference
DATABASE  catalog/open.lock       while a process opens the database; shared for as long as it has it open
EVICTION  catalog/eviction.lock   by the process that removes content; SQLite's own lock is taken after it
USERS     (the folder itself)     by the process that changes the file of users in it
MENDING   catalog/mend.lock       by the process that repairs after a start
SCRUB     catalog/scrub.lock      by the process that scrubs
LISTS     catalog/lists.lock      by the process that pulls the images of [[warm]] lists
LEAD      spool/….part            by the process that writes a download
READERS   spool/….sources         shared by the processes that read a download along; tried by the one that writes it
PEER      catalog/asking.lock     shared by the processes that ask another mirror of the fleet for a blob: one byte for each; tried by who is asked for it by such a mirror
CONTENT   blobs/…                 shared by readers; exclusive by the process that removes it
OUTBOX    catalog/outbox.lock     by the process that writes to the bucket
METRICS   (outside of it)         shared by the workers that write figures into a folder; exclusive by the process that clears it away
EXPORT    (outside of it)         by the `mirror export` that writes the file
========  ======================  ============================================================================================

The first five are waited for, in this order: whoever waits for one holds neither it nor a later one of the five. `wait` and `KeyedFileLock.take` assert it, for
a thread or task and for what it is called by. The others are only tried, and whoever fails to get one does without, so nobody can wait for their holder.

The kernel drops a lock when its holder dies, however it dies. Files rather than an in-process lock, since several processes share a cache directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path

from mirror.regular_files import open_file

_FLOCK = struct.Struct("hhqqi0q")
_INTERVAL = 0.02
"""Seconds between two tries for a key."""


class Lock(IntEnum):
    """The locks of a cache directory; those that are waited for come first, in the order of taking."""

    CHECK = 1
    FETCH = 2
    DATABASE = 3
    EVICTION = 4
    USERS = 5
    MENDING = 6
    SCRUB = 7
    LISTS = 8
    LEAD = 9
    READERS = 10
    PEER = 11
    CONTENT = 12
    OUTBOX = 13
    METRICS = 14
    EXPORT = 15


WAITED_FOR = (Lock.CHECK, Lock.FETCH, Lock.DATABASE, Lock.EVICTION, Lock.USERS)


class _Holding:
    """A lock that was waited for. Not `held` any more in contexts that were copied while it was."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.held = True


_holdings: ContextVar[tuple[_Holding, ...]] = ContextVar("holdings", default=())
"""Of this task or thread, and of those that it works for: a task inherits them, and so does a thread of `mirror.threads`."""


@contextlib.contextmanager
def _in_order(lock: Lock) -> Iterator[None]:
    """Asserts that nothing is held that is taken after `lock`, and notes that it is held."""
    assert lock in WAITED_FOR, f"{lock.name} is never waited for"
    held = tuple(holding for holding in _holdings.get() if holding.held)
    assert all(holding.lock < lock for holding in held), f"{lock.name} is taken after {held[-1].lock.name}"
    this = _Holding(lock)
    _holdings.set((*held, this))
    try:
        yield
    finally:
        this.held = False


@contextlib.contextmanager
def wait(path: Path, lock: Lock) -> Iterator[None]:
    """Holds an exclusive lock on a lock file. Blocks while another process has it. Raises OSError."""
    with _in_order(lock), _opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def wait_for_folder(path: Path, lock: Lock) -> Iterator[None]:
    """Holds an exclusive lock on a folder, which may be anybody's, so that no lock file is left there. Blocks. Excludes nobody on a file system without such locks. Raises OSError if the
    folder cannot be opened."""
    with _in_order(lock):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@contextlib.contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a lock file. Raises BlockingIOError if another process has it; OSError."""
    with _opened(path) as fd:
        if not try_exclusive(fd):
            raise BlockingIOError(f"{path} is locked")
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opening(fd: int, lock: Lock) -> Iterator[bool]:
    """Locks an open file: exclusively if possible (True), else shared (False). On exit the lock becomes shared, until the file is closed. Blocks. Raises OSError."""
    with _in_order(lock):
        exclusive = try_exclusive(fd)
        if not exclusive:
            fcntl.flock(fd, fcntl.LOCK_SH)
        yield exclusive
        fcntl.flock(fd, fcntl.LOCK_SH)


def try_exclusive(fd: int) -> bool:
    """Tries to lock an open file exclusively. Returns False if it is locked already. Raises OSError if the file system has no locks."""
    return _try(fd, fcntl.LOCK_EX)


def try_shared(fd: int) -> bool:
    """Tries to lock an open file as shared. Returns False if it is locked exclusively. Raises OSError if the file system has no locks."""
    return _try(fd, fcntl.LOCK_SH)


def unlock(fd: int) -> None:
    """Gives up the lock on an open file. Raises OSError."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class KeyedFileLock:
    """A lock for each key, in one file: a byte each, at the hash of the key (fcntl(2), "Open file description locks").

    Excludes other processes only. On a file system without such locks it excludes nobody.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        self._shared: Counter[int] = Counter()
        """How often this process holds which byte as shared."""
        with contextlib.suppress(OSError):
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)

    @contextlib.asynccontextmanager
    async def take(self, lock: Lock, key: str) -> AsyncIterator[None]:
        """Waits until no other process holds the same key."""
        with _in_order(lock):
            fd, offset = self._file, _offset(key)
            if fd is None:
                yield
                return
            with contextlib.suppress(OSError):
                while not _try_byte(fd, offset):
                    await asyncio.sleep(_INTERVAL)
            try:
                yield
            finally:
                self._set(fcntl.F_UNLCK, offset)

    @contextlib.contextmanager
    def share(self, key: str) -> Iterator[None]:
        """Holds a key that nobody waits for, as others may at the same time."""
        offset = _offset(key)
        self._shared[offset] += 1
        if self._shared[offset] == 1:
            self._set(fcntl.F_RDLCK, offset)
        try:
            yield
        finally:
            self._shared[offset] -= 1
            if not self._shared[offset]:
                del self._shared[offset]
                self._set(fcntl.F_UNLCK, offset)

    def is_shared(self, key: str) -> bool:
        """Returns whether this or another process holds a key by `share`."""
        offset = _offset(key)
        if offset in self._shared:
            return True
        if self._file is None:
            return False
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        try:
            kind = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked))[0]
        except OSError:
            return False
        return bool(kind != fcntl.F_UNLCK)

    def _set(self, kind: int, offset: int) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _offset(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


def _try_byte(fd: int, offset: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except BlockingIOError:
        return False
    return True
