"""A download in progress, on disk: it survives the process, and other processes share it.

Two files in ``spool/``: ``<algorithm>-<hex>.part`` holds the bytes at their final offsets, ``….have`` is the journal of which of them are there. A third,
``….sources``, names the repositories that have the blob (see sources.py). A download that goes by one of several sizes has that size in its name:
``<algorithm>-<hex>.<size>.part``.

Whoever holds the exclusive ``flock`` on the ``.part`` file *leads*: only the leader writes. Other processes *follow*: they read the same bytes, guided by the journal.
The kernel drops the lock when its holder dies, however it dies, so there is never a lease to expire.

Any process may create the ``.part`` file. Only the leader creates the two others, and it deletes them before the ``.part`` file loses its name: they always belong
to the ``.part`` file of that name, and none stays behind.

The journal is 16-byte records of two little-endian 64-bit numbers, appended after the bytes they speak of: first the magic and the blob's size, then
``start, end`` of what has come. One record means something else: VERIFIED means, for followers, that a file whose name is gone was committed.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from pathlib import Path

from mirror.locks import try_exclusive, try_shared, unlock
from mirror.names import Digest
from mirror.regular_files import NoFile, open_file, status_of
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.sources import Sources
from mirror.storage.extents import Extents

_RECORD = struct.Struct("<QQ")
_MAGIC = int.from_bytes(b"mirror-1", "little")
_UNKNOWN = 2**64 - 1
_VERIFIED = (_UNKNOWN, _UNKNOWN)
_BESIDE = (".have", ".sources")
"""What is of no use without the bytes."""
_ABANDONED_AFTER = 7 * 24 * 3600.0
_WRITTEN_AFTER = 3600.0
"""Seconds after which no process can still be writing a small file."""


class Spool:
    """One process's view of one download. Not thread-safe but for `write`."""

    def __init__(self, store: BlobStore, digest: Digest, claimed: int | None = None) -> None:
        """Opens the files, and creates missing ones. `claimed` is the size in their name, None for none. Raises OSError."""
        self.digest = digest
        self.have = Extents()
        self.size: int | None = None
        """Bytes of the whole blob, once known."""
        self.verified = False
        self.inherited = False
        """True when some of the bytes were fetched by an earlier leader."""
        self.leads = False
        """True while this process leads a download that has not ended."""
        self._store = store
        self.name = f"{digest.algorithm}-{digest.hex}{'' if claimed is None else f'.{claimed}'}.part"
        self._part_path = f"{store.spool}/{self.name}"
        base = self._part_path.removesuffix(".part")
        self._have_path, self._sources_path = f"{base}.have", f"{base}.sources"
        self.fd = open_file(self._part_path, os.O_RDWR | os.O_CREAT)
        self._journal = -1
        self._sources = Sources()
        self._read_to = 0

    @property
    def sources(self) -> Sources:
        self._find()
        return self._sources

    def _find(self) -> None:
        """Opens the leader's files, once it has created them. Raises OSError."""
        if self._journal < 0:
            with contextlib.suppress(NoFile):
                self._open(0)

    def _open(self, create: int) -> None:
        """Opens the sources and the journal, unless the names belong to another download by now. `create` is O_CREAT or 0. Raises NoFile, OSError."""
        journal = -1
        try:
            # Whoever finds the journal finds the sources too.
            self._sources.open(self._sources_path, create)
            journal = open_file(self._have_path, os.O_RDWR | create)
            # While this process leads, nobody else ends the download.
            if create or self.current:
                self._journal, journal = journal, -1
        finally:
            if self._journal < 0:
                self._sources.close()
            if journal >= 0:
                os.close(journal)

    def lead(self) -> bool:
        """Tries to take the lease. True when it is ours, or when there is nothing left to lead (see `current`).

        What an earlier leader left is taken over. Raises OSError, also where the file system has no locks.
        """
        if not try_exclusive(self.fd):
            return False
        if not self.current:
            # It ended meanwhile; `verified` says how.
            self.follow()
            return True
        self.leads = True
        if self._journal < 0:
            try:
                self._open(os.O_CREAT)
            except OSError:
                self.release()
                raise
        self.follow()
        # A leader may have died between verifying and renaming: the bytes are verified again.
        self.verified = False
        self.inherited = self.have.total > 0
        if not self.inherited:
            # A new file, or a journal that is not one or belongs to other bytes.
            self.restart()
        else:
            os.ftruncate(self._journal, self._read_to)
        return True

    @property
    def current(self) -> bool:
        """False once the files are no longer under their names: published, discarded, or removed by another process. Raises OSError if that cannot be found out."""
        named = status_of(self._part_path)
        return named is not None and os.path.samestat(named, os.fstat(self.fd))

    def follow(self) -> None:
        """Reads what the leader has added to the journal, up to the first record that is torn or invalid."""
        self._find()
        if self._journal < 0:
            return
        extent = os.fstat(self.fd).st_size
        while chunk := os.pread(self._journal, 4096 * _RECORD.size, self._read_to):
            whole = len(chunk) - len(chunk) % _RECORD.size
            if whole == 0:
                return
            for first, second in _RECORD.iter_unpack(chunk[:whole]):
                if self._read_to == 0:
                    if first != _MAGIC:
                        return
                    self.size = None if second == _UNKNOWN else second
                elif (first, second) == _VERIFIED:
                    self.verified = True
                elif first == _MAGIC:
                    self.size = second
                elif first < second <= extent:
                    self.have.add(first, second)
                else:
                    return
                self._read_to += _RECORD.size

    def restart(self) -> None:
        """Discards all bytes and starts again. For the leader."""
        os.ftruncate(self._journal, 0)
        os.ftruncate(self.fd, 0)
        self.have, self.size, self.inherited, self._read_to = Extents(), None, False, 0
        self.verified = False
        self._append(_MAGIC, _UNKNOWN)

    def set_size(self, size: int) -> None:
        """Records the blob's size in bytes and gives the file that length. For the leader."""
        if size != self.size:
            os.ftruncate(self.fd, size)
            self.size = size
            self._append(_MAGIC, size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes at `offset`. `note` makes them known afterwards. May run in a thread. Raises OSError."""
        left = memoryview(data)
        while left:
            written = os.pwrite(self.fd, left, offset)
            offset += written
            left = left[written:]

    def note(self, start: int, end: int) -> None:
        """Makes it known to all processes that ``[start, end)`` is there. Raises OSError."""
        self._append(start, end)
        self.have.add(start, end)

    def publish(self) -> None:
        """Moves the verified file durably to its final name. Blocks. Raises OSError."""
        self.leads = False
        self.verified = True
        self._append(*_VERIFIED)
        self._store.publish(self.fd, Path(self._part_path), self.digest, (self._have_path, self._sources_path))
        self.share()

    def share(self) -> None:
        """Turns the lease into a reader's shared lock, which protects the finished file from eviction while it is open."""
        with contextlib.suppress(OSError):
            try_shared(self.fd)

    def release(self) -> None:
        """Gives up the lease. The bytes stay for the next leader."""
        self.leads = False
        with contextlib.suppress(OSError):
            unlock(self.fd)

    def discard(self) -> None:
        """Deletes the files. For the leader. Followers find that the name is gone and the blob is not verified."""
        self.leads = False
        for path in (self._have_path, self._sources_path, self._part_path):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def close(self) -> None:
        """Closes the files, which also gives up the lease."""
        self.leads = False
        os.close(self.fd)
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        self._sources.close()

    def _append(self, first: int, second: int) -> None:
        os.pwrite(self._journal, _RECORD.pack(first, second), self._read_to)
        self._read_to += _RECORD.size


def sweep(store: BlobStore, now: float | None = None, *, dry_run: bool = False) -> tuple[int, int]:
    """Clears from the spool what no download will go on with: what has lost its bytes, and parts untouched for a week. How many those are, and their bytes.

    With them goes what was being written beside the blobs when a process was killed.
    """
    count = size = 0
    now = time.time() if now is None else now
    oldest = now - _ABANDONED_AFTER
    for path in store.unfinished():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < now - _WRITTEN_AFTER and not dry_run:
                path.unlink()
    for path in store.spool.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix in _BESIDE and not path.with_suffix(".part").exists():
                # A leader that begins meanwhile has just written its own.
                if path.stat().st_mtime < now - _WRITTEN_AFTER and not dry_run:
                    path.unlink()
            elif path.suffix == ".part" and path.stat(follow_symlinks=False).st_mtime < oldest:
                freed = _remove_unled(path, dry_run=dry_run)
                if freed is not None:
                    count, size = count + 1, size + freed
    return count, size


def make_room(store: BlobStore, need: float, *, dry_run: bool = False) -> int:
    """Removes downloads that no process leads, those untouched for longest first, until `need` bytes are free or none is left. The bytes freed, or, with `dry_run`, those that would be.

    Who still reads of them can go on doing so.
    """
    found = []
    for path in store.spool.glob("*.part"):
        with contextlib.suppress(OSError):
            found.append((path.stat(follow_symlinks=False).st_mtime, path))
    freed = 0
    for _, path in sorted(found):
        if freed >= need:
            break
        with contextlib.suppress(OSError):
            freed += _remove_unled(path, dry_run=dry_run) or 0
    return freed


def _remove_unled(path: Path, *, dry_run: bool = False) -> int | None:
    """Removes a download, or with `dry_run` only says what that would free, in bytes. None where a process leads it, or it has ended. Raises OSError."""
    fd = open_file(path, os.O_RDWR)
    try:
        named = status_of(path) if try_exclusive(fd) else None
        if named is None or not os.path.samestat(named, os.fstat(fd)):
            # Led, or ended since it was opened: what has its name now is another's.
            return None
        if not dry_run:
            for suffix in _BESIDE:
                with contextlib.suppress(OSError):
                    path.with_suffix(suffix).unlink()
            path.unlink()
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
