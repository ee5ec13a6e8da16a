"""Finished, verified content as files::

    <cache.dir>/
      oci-layout
      blobs/sha256/<hex>     layers, configs and manifests: nothing unverified is ever under this name
      blobs/sha512/<hex>
      spool/                 downloads in progress (see flights/spool.py)

An OCI image layout's own shape (image-spec 1.1, "image-layout.md"), deduplicated over all repositories and registries. A reader holds a shared
``flock`` on the file; eviction takes an exclusive one first and passes by what it can't get, in this process or another.

What has been verified is sealed: the fraction of its time of modification is made from its digest. Whatever writes to the file after that, or copies or restores it
without its times, breaks the seal, and it is verified anew before anybody gets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mirror import metrics
from mirror.errors import DigestInvalid
from mirror.names import Digest

log = logging.getLogger(__name__)

_ALGORITHMS = ("sha256", "sha512")
_BESIDE = ".writing-"
_SECOND = 10**9
_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BlobFile:
    """An open blob. `fd` belongs to the holder, who closes it; `size` is in bytes; it has not been touched since it was verified where it is `sealed`."""

    fd: int
    size: int
    sealed: bool

    def read_all(self) -> bytes:
        with open(self.fd, "rb", closefd=False) as file:
            return file.read()

    def close(self) -> None:
        os.close(self.fd)


class BlobStore:
    """The folder of finished content."""

    def __init__(self, root: Path) -> None:
        """Makes the folders. Raises OSError where it may not."""
        self.root = root
        self._unsealable: dict[Digest, tuple[int, ...]] = {}
        self.spool = root / "spool"
        for algorithm in _ALGORITHMS:
            (root / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
        self.spool.mkdir(exist_ok=True)
        layout = root / "oci-layout"
        if not layout.exists():
            write_durably(layout, b'{"imageLayoutVersion": "1.0.0"}')

    def path(self, digest: Digest) -> str:
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def open(self, digest: Digest) -> BlobFile | None:
        """Opens a blob for reading; None where it is not cached."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Not only absent: what cannot be opened is as good as absent, and is fetched again.
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return None
        with contextlib.suppress(OSError):
            # Fails only while eviction is unlinking it. What is open stays readable all the same.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return BlobFile(fd, status.st_size, self._is_sealed(status, digest))

    def size(self, digest: Digest) -> int | None:
        """The size of a blob in bytes; None where it is not cached."""
        try:
            status = os.stat(self.path(digest))
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def put(self, digest: Digest, content: bytes) -> None:
        """Stores small content that is verified already. Raises OSError."""
        write_durably(Path(self.path(digest)), content, lambda fd: self.seal(fd, digest))

    def seal(self, fd: int, digest: Digest, since: os.stat_result | None = None) -> None:
        """Seals a file whose content is verified; not one that was touched `since` then. Where the file system, or the file's owner, does not allow it, this
        process remembers it."""
        status = os.fstat(fd)
        if self._is_sealed(status, digest) or (since is not None and _state(since) != _state(status)):
            return
        with contextlib.suppress(OSError):
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns // _SECOND * _SECOND + _fraction(digest)))
        status = os.fstat(fd)
        if not self._is_sealed(status, digest):
            self._unsealable[digest] = _state(status)

    def _is_sealed(self, status: os.stat_result, digest: Digest) -> bool:
        return status.st_mtime_ns % _SECOND == _fraction(digest) or self._unsealable.get(digest) == _state(status)

    def verify(self, digest: Digest, given_up: Callable[[], bool]) -> bool:
        """Reads a blob and hashes it, at once, unless it is `given_up`. Seals what is right, removes what is wrong, readers or not, which is when it is False."""
        file = self.open(digest)
        if file is None:
            return True
        hasher, buffer = digest.hasher(), memoryview(bytearray(_CHUNK))
        with contextlib.closing(file), open(file.fd, "rb", buffering=0, closefd=False) as opened:
            since = os.fstat(file.fd)
            try:
                while count := opened.readinto(buffer):
                    if given_up():
                        return True
                    hasher.update(buffer[:count])
                right = hasher.hexdigest() == digest.hex
            except OSError:
                right = False
            if right:
                self.seal(file.fd, digest, since)
            else:
                self.remove_damaged(file.fd, digest)
        return right

    def remove_damaged(self, fd: int, digest: Digest) -> None:
        """Unlinks the very file that was read, readers or not: what they have is wrong, and who comes next shall not have it."""
        log.error("%s is damaged on disk: removed, to be fetched again", digest)
        metrics.scrub_damaged.inc()
        path = self.path(digest)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                os.unlink(path)

    def remove(self, digest: Digest) -> bool:
        """Removes a blob unless somebody, in whatever process, is reading it. True when it is gone."""
        path = self.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def unlink(self, digest: Digest) -> None:
        """Removes a blob even if somebody is reading it, who can do so to its end. Raises OSError."""
        Path(self.path(digest)).unlink(missing_ok=True)

    def scan(self) -> Iterator[tuple[Digest, int]]:
        """Every blob there is, with its size in bytes. What is no file, or whose name is no digest, is not ours and passed over."""
        for algorithm in _ALGORITHMS:
            with os.scandir(self.root / "blobs" / algorithm) as entries:
                for entry in entries:
                    try:
                        digest, status = Digest.parse(f"{algorithm}:{entry.name}"), entry.stat()
                    except (DigestInvalid, OSError):
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield digest, status.st_size

    def unfinished(self) -> Iterator[Path]:
        """What `put` is writing, or was when it was killed."""
        for algorithm in _ALGORITHMS:
            yield from (self.root / "blobs" / algorithm).glob(f"{_BESIDE}*")


def _fraction(digest: Digest) -> int:
    """In nanoseconds, but whole microseconds: there are file systems that know no less."""
    return int(digest.hex[:8], 16) % 1_000_000 * 1000


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_durably(path: Path, content: bytes, written: Callable[[int], None] | None = None) -> None:
    """Writes a file so that after a crash it is there whole or not at all: beside, fsync, rename, fsync the folder. `written` is called with its descriptor."""
    fd, beside = tempfile.mkstemp(dir=path.parent, prefix=_BESIDE)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            if written is not None:
                written(fd)
            os.fsync(fd)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
