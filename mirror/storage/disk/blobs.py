"""Finished, verified content as files::

    <cache.dir>/
      blobs/sha256/<hex>     layers, configs and manifests: nothing unverified is ever under this name
      blobs/sha512/<hex>
      spool/                 downloads in progress (see spool.py)
      catalog/               what is known about the content (see catalog/catalog.py)

The blobs have the names that they have in an OCI image layout (image-spec 1.1, "image-layout.md"), deduplicated over all repositories and registries. The folder
is not a layout: tags are in the catalog. Only its owner can read it. A reader holds a shared lock on the file; eviction takes an exclusive one first and passes
by what it can't get, in this process or another.

What has been verified is sealed: the fraction of its time of modification is made from its digest. Whatever writes to the file after that, or copies or restores
it without its times, breaks the seal, and it is verified anew before anybody gets it.

Only what is not there counts as absent: other errors are raised (see mirror/regular_files.py).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mirror import metrics
from mirror.durable import BESIDE, rename_durably, write_durably
from mirror.errors import DigestInvalid
from mirror.locks import try_exclusive, try_shared
from mirror.names import Digest
from mirror.regular_files import NoFile, open_file, status_of
from mirror.storage.disk.files import make_private_folder
from mirror.storage.slices import FileSlice, Part

log = logging.getLogger(__name__)

_ALGORITHMS = ("sha256", "sha512")
_SECOND = 10**9
_CHUNK = 1024 * 1024
ROTTEN = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
"""Errors of a disk that has lost what was on it."""


@dataclass(frozen=True, slots=True)
class BlobFile:
    """An open blob. The holder closes `fd`; `size` is in bytes; `sealed` means that the file was not modified since it was verified."""

    fd: int
    size: int
    sealed: bool

    def read_all(self) -> bytes:
        with open(self.fd, "rb", closefd=False) as file:
            return file.read()

    def close(self) -> None:
        os.close(self.fd)


class FileReader:
    """A reader of a finished blob."""

    def __init__(self, file: BlobFile) -> None:
        self.size: int | None = file.size
        self._file = file

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        end = self._file.size if stop is None else stop
        if start < end:
            yield FileSlice(self._file.fd, start, end - start)

    async def aclose(self) -> None:
        self._file.close()


class BlobStore:
    """The folder of finished content."""

    dry_run = False
    """True for a dry run: nothing is removed, and `remove` returns what it would."""

    def __init__(self, root: Path) -> None:
        """Makes the folders; a full disk is no reason not to start. Raises OSError."""
        self.root = root
        self._unsealable: dict[Digest, tuple[int, ...]] = {}
        self.spool = root / "spool"
        for folder in (root / "blobs", *(root / "blobs" / algorithm for algorithm in _ALGORITHMS), self.spool):
            make_private_folder(folder)

    def path(self, digest: Digest) -> str:
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def open(self, digest: Digest) -> BlobFile | None:
        """Opens a blob for reading. Returns None if it is not cached. Raises OSError if that cannot be found out."""
        try:
            fd = open_file(self.path(digest), os.O_RDONLY)
        except NoFile:
            return None
        status = os.fstat(fd)
        with contextlib.suppress(OSError):
            # Fails only while eviction is unlinking it. What is open stays readable all the same.
            try_shared(fd)
        return BlobFile(fd, status.st_size, self._is_sealed(status, digest))

    def size(self, digest: Digest) -> int | None:
        """Returns the size of a blob in bytes, None if it is not cached. Raises OSError if that cannot be found out."""
        status = status_of(self.path(digest))
        return None if status is None else status.st_size

    def is_gone(self, digest: Digest) -> bool:
        """True if a blob is not cached; False if it is, or if that cannot be found out."""
        try:
            return self.size(digest) is None
        except OSError as error:
            log.warning("%s cannot be read, and stays in the catalog: %s", digest, error)
            return False

    def put(self, digest: Digest, content: bytes) -> None:
        """Stores small content, which the caller has verified. Raises OSError."""
        write_durably(Path(self.path(digest)), content, lambda fd: self.seal(fd, digest))

    def publish(self, fd: int, source: Path, digest: Digest, obsolete: Iterable[str] = ()) -> None:
        """Gives a verified file of the spool, open as `fd`, its final name, durably; deletes the files that are `obsolete` then. Blocks. Raises OSError."""
        self.seal(fd, digest)
        rename_durably(fd, source, Path(self.path(digest)), obsolete)

    def seal(self, fd: int, digest: Digest, since: os.stat_result | None = None) -> None:
        """Seals a file whose content is verified, unless it was modified since the status `since`. Where the file system, or the file's owner, does not allow it, this
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
        """Reads, hashes and seals a blob, unless `given_up` returns True. Returns False if it was damaged; it is removed then, even while it is read. Blocks.

        Raises OSError where it cannot be opened, or not be read for want of something else than the disk.
        """
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
            except OSError as error:
                if error.errno not in ROTTEN:
                    raise
                log.error("%s cannot be read: %s", digest, error)
                right = False
            if right:
                self.seal(file.fd, digest, since)
            else:
                self.remove_damaged(file.fd, digest)
        return right

    def remove_damaged(self, fd: int, digest: Digest) -> None:
        """Unlinks the file that was read, even while others read it: what they get is wrong, and the next client must not get it."""
        log.error("%s is damaged on disk: removed, to be fetched again", digest)
        metrics.scrub_damaged.inc()
        path = self.path(digest)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                os.unlink(path)

    def remove(self, digest: Digest) -> bool:
        """Removes a blob, unless any process is reading it. Returns True if it is gone."""
        path = self.path(digest)
        try:
            fd = open_file(path, os.O_RDONLY)
        except NoFile:
            return True
        except OSError:
            return False
        try:
            if not try_exclusive(fd):
                return False
            os.unlink(path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def unlink(self, digest: Digest) -> None:
        """Removes a blob. Whoever is reading it can go on to its end. Raises OSError."""
        Path(self.path(digest)).unlink(missing_ok=True)

    def scan(self) -> Iterator[tuple[Digest, int]]:
        """Yields every blob with its size in bytes. Skips what is no file, or has no digest as its name."""
        for algorithm in _ALGORITHMS:
            with os.scandir(self.root / "blobs" / algorithm) as entries:
                for entry in entries:
                    try:
                        digest, status = Digest.parse(f"{algorithm}:{entry.name}"), entry.stat(follow_symlinks=False)
                    except (DigestInvalid, OSError):
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield digest, status.st_size

    def unfinished(self) -> Iterator[Path]:
        """Yields the files that `put` is writing, or was writing when it was killed."""
        for algorithm in _ALGORITHMS:
            yield from (self.root / "blobs" / algorithm).glob(f"{BESIDE}*")


def _fraction(digest: Digest) -> int:
    """In nanoseconds, but whole microseconds: there are file systems that know no less."""
    return int(digest.hex[:8], 16) % 1_000_000 * 1000


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
