"""Files that are there whole or not at all, after a crash too: written beside, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

BESIDE = ".writing-"
"""How the names of files begin that are being written, or were when their writer was killed."""


def write_durably(path: Path, content: bytes, prepare: Callable[[int], None] | None = None) -> None:
    """Writes a file that its owner alone can read, or replaces it. `prepare` is called with its descriptor before it gets its name. Blocks. Raises OSError."""
    fd, beside = tempfile.mkstemp(dir=path.parent, prefix=BESIDE)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            if prepare is not None:
                prepare(fd)
            os.fsync(fd)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_folder(path.parent)


def rename_durably(fd: int, source: Path, target: Path) -> None:
    """Gives a written file, open as `fd`, its final name. Blocks. Raises OSError."""
    os.fsync(fd)
    os.replace(source, target)
    sync_folder(target.parent)


def replace(path: Path, content: bytes) -> None:
    """Replaces a file at once for all who read it, without waiting for the disk: for what is of no use after a crash. Raises OSError."""
    beside = path.with_name(f"{BESIDE}{path.name}")
    beside.write_bytes(content)
    os.replace(beside, path)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
