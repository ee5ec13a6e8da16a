"""Uploads in progress, on disk: ``spool/<id>.upload`` has the bytes that were received, so that an upload goes on after a restart, and in any process.

Who writes holds the exclusive ``flock`` on the file. An id is random, and ends in marks of the client that has begun it and of the repository that it is for; whoever
knows it may continue.

The bytes are hashed as they come. What another process has written is read again when the upload ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.durable import sync_file
from mirror.errors import DigestInvalid, UploadBusy, UploadUnknown
from mirror.locks import try_exclusive
from mirror.names import Digest, Repository
from mirror.regular_files import NoFile, open_file, status_of

if TYPE_CHECKING:
    from hashlib import _Hash

_SUFFIX = ".upload"
_ID = re.compile(r"[0-9a-f]{32}-([0-9a-f]{16})-[0-9a-f]{16}")
_MOST_HASHES = 1000
_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload that is there: its bytes, and when it was written to last, in seconds since the epoch."""

    id: str
    owner: str
    """The mark of the client that has begun it."""
    path: Path
    size: int
    written: float


class UploadFiles:
    """All uploads of a cache directory. Methods block unless they say otherwise."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self.hashes: OrderedDict[str, tuple[_Hash, int]] = OrderedDict()
        """By upload, the running SHA-256 of this process and how many bytes it is of."""

    def begin(self, repository: Repository, owner: str) -> UploadFile:
        """Creates an upload; `owner` is `mark` of the client. Raises OSError."""
        name = f"{secrets.token_hex(16)}-{owner}-{mark(str(repository))}"
        fd = open_file(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try_exclusive(fd)
        return UploadFile(self, name, self._path(name), fd)

    def resume(self, repository: Repository, name: str, *, write: bool) -> UploadFile:
        """Opens an upload. Raises UploadUnknown, UploadBusy, OSError."""
        unknown = UploadUnknown(
            "there is no such upload here: it was completed, cancelled, or not continued for too long; begin another"
        )
        if not _ID.fullmatch(name) or not name.endswith(mark(str(repository))):
            raise unknown
        try:
            fd = open_file(self._path(name), os.O_RDWR)
        except NoFile:
            raise unknown from None
        try:
            if write and not try_exclusive(fd):
                raise UploadBusy("another request is writing this upload: wait for its end")
            named = status_of(self._path(name))
            if named is None or not os.path.samestat(named, os.fstat(fd)):
                # It ended before it was locked.
                raise unknown
        except BaseException:
            os.close(fd)
            raise
        return UploadFile(self, name, self._path(name), fd)

    def unfinished(self) -> Iterator[Unfinished]:
        """Yields every upload."""
        with os.scandir(self._spool) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_SUFFIX)
                if name == entry.name:
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    match = _ID.fullmatch(name)
                    owner = match[1] if match is not None else ""
                    yield Unfinished(name, owner, Path(entry.path), status.st_size, status.st_mtime)

    def drop(self, upload: Unfinished, *, dry_run: bool = False) -> bool:
        """Deletes an upload, unless somebody is writing it. Returns whether it did."""
        with contextlib.suppress(OSError):
            fd = open_file(upload.path, os.O_RDWR)
            try:
                if try_exclusive(fd):
                    if not dry_run:
                        upload.path.unlink()
                    return True
            finally:
                os.close(fd)
        return False

    def sweep(self, older_than: float, *, dry_run: bool = False) -> int:
        """Deletes uploads that nobody has written to for so many seconds. Returns how many those are."""
        latest = time.time() - older_than
        return sum(self.drop(upload, dry_run=dry_run) for upload in self.unfinished() if upload.written < latest)

    def _path(self, name: str) -> Path:
        return self._spool / f"{name}{_SUFFIX}"


class UploadFile:
    """One upload that is open."""

    def __init__(self, files: UploadFiles, name: str, path: Path, fd: int) -> None:
        self.id = name
        self.path = path
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self.owner = name.split("-")[1]
        self._files = files
        self._hash, hashed = files.hashes.pop(name, (hashlib.sha256(), 0))
        self._is_hashed = hashed == self.size

    def write(self, pieces: Sequence[bytes]) -> None:
        """Appends bytes. Blocks. Raises OSError: none of them count then."""
        offset = self.size
        for piece in pieces:
            left = memoryview(piece)
            while left:
                written = os.pwrite(self.fd, left, offset)
                offset += written
                left = left[written:]
        if self._is_hashed:
            for piece in pieces:
                self._hash.update(piece)
        self.size = offset

    def drop_torn(self) -> None:
        """Drops what was written of pieces that do not count. Blocks."""
        os.ftruncate(self.fd, self.size)

    def rewind(self, size: int) -> None:
        """Drops all bytes but the first `size`: those are read again to be hashed. Blocks."""
        if size != self.size:
            self.size, self._is_hashed = size, False
        self.drop_torn()

    def verify(self, digest: Digest) -> None:
        """Returns if the bytes are what a digest says, and are on the disk. Blocks. Raises DigestInvalid, OSError."""
        if digest.algorithm == "sha256" and self._is_hashed:
            found = self._hash.hexdigest()
        else:
            hasher, offset = digest.hasher(), 0
            view = memoryview(bytearray(_CHUNK))
            while count := os.preadv(self.fd, [view], offset):
                hasher.update(view[:count])
                offset += count
            found = hasher.hexdigest()
        if found != digest.hex:
            raise DigestInvalid(f"the {self.size} bytes of the upload have the digest {digest.algorithm}:{found}, not {digest}")
        sync_file(self.fd)

    def unlink(self) -> None:
        """Deletes it. Blocks."""
        self._is_hashed = False
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets others write. Its hash is kept for the next request."""
        if self.fd < 0:
            return
        if self._is_hashed and self.size:
            self._files.hashes[self.id] = self._hash, self.size
            if len(self._files.hashes) > _MOST_HASHES:
                self._files.hashes.popitem(last=False)
        os.close(self.fd)
        self.fd = -1


def mark(text: str) -> str:
    """Returns what stands for a repository, or for a client, in an upload's id."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
