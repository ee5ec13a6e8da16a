"""Files that are there whole or not at all, after a crash too: written beside, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mirror.regular_files import open_file

BESIDE = ".writing-"
"""How the names of files begin that are being written, or were when their writer was killed."""


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
"""Errors of a file system without hard links."""


def write_durably(path: Path, content: bytes, prepare: Callable[[int], None] | None = None) -> None:
    """Writes a file that only its owner can read, or replaces it. `prepare` is called with its descriptor before it gets its name. Blocks. Raises OSError."""
    with _written_beside(path, content, prepare) as beside:
        os.replace(beside, path)
    sync_folder(path.parent)


def create_durably(path: Path, content: bytes) -> bool:
    """Writes a file that only its owner can read. Returns False if the name exists already. Blocks. Raises OSError."""
    with _written_beside(path, content) as beside:
        created = True
        try:
            os.link(beside, path)
        except FileExistsError:
            created = False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(beside, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
    if created:
        sync_folder(path.parent)
    return created


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes, prepare: Callable[[int], None] | None = None) -> Iterator[str]:
    """Gives the name of a file beside `path` that holds `content` durably; it is removed if the block raises. Raises OSError."""
    fd, beside = tempfile.mkstemp(dir=path.parent, prefix=BESIDE)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            if prepare is not None:
                prepare(fd)
            os.fsync(fd)
        yield beside
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def rename_durably(fd: int, source: Path, target: Path, obsolete: Iterable[str]) -> None:
    """Gives a written file, open as `fd`, its final name, and deletes the files that are of no use without `source`. Blocks. Raises OSError."""
    os.fsync(fd)
    # First, since once `source` is gone somebody else may create all of them anew.
    for path in obsolete:
        with contextlib.suppress(OSError):
            os.unlink(path)
    os.replace(source, target)
    sync_folder(target.parent)


def replace(path: Path, content: bytes) -> None:
    """Replaces a file at once for all who read it, without waiting for the disk: for what is of no use after a crash. Raises OSError."""
    beside = path.with_name(f"{BESIDE}{path.name}")
    with open(open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o644), "wb") as file:
        file.write(content)
    os.replace(beside, path)


def sync_file(fd: int) -> None:
    """Makes the content of an open file durable. Blocks. Raises OSError."""
    os.fsync(fd)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
