"""Finished, verified content as files::

    <cache.dir>/
      oci-layout
      blobs/sha256/<hex>     layers, configs and manifests: nothing unverified is ever under this name
      blobs/sha512/<hex>
      spool/                 downloads in progress (see flights/spool.py)

An OCI image layout's own shape (image-spec 1.1, "image-layout.md"), deduplicated over all repositories and registries. A reader holds a shared
``flock`` on the file; eviction takes an exclusive one first and passes by what it can't get, in this process or another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import DigestInvalid
from mirror.names import Digest

_ALGORITHMS = ("sha256", "sha512")
_BESIDE = ".writing-"


@dataclass(frozen=True, slots=True)
class BlobFile:
    """An open blob. `fd` belongs to the holder, who closes it; `size` is in bytes."""

    fd: int
    size: int

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
        return BlobFile(fd, status.st_size)

    def size(self, digest: Digest) -> int | None:
        """The size of a blob in bytes; None where it is not cached."""
        try:
            status = os.stat(self.path(digest))
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def put(self, digest: Digest, content: bytes) -> None:
        """Stores small content that is verified already. Raises OSError."""
        write_durably(Path(self.path(digest)), content)

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


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file so that after a crash it is there whole or not at all: beside, fsync, rename, fsync the folder."""
    fd, beside = tempfile.mkstemp(dir=path.parent, prefix=_BESIDE)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
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
