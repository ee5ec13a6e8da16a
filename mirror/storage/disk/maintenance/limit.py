"""The limit that a directory's mirror was last started with, for commands that are given none: by the default they would remove what a mirror with
`--max-size` keeps.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mirror.durable import write_durably
from mirror.regular_files import read_file


def note(root: Path, max_size: int) -> None:
    """Writes the limit down, in bytes. Does nothing where the directory cannot be written."""
    if noted(root) != max_size:
        with contextlib.suppress(OSError):
            write_durably(_file(root), f"{max_size}\n".encode())


def noted(root: Path) -> int | None:
    """Returns the limit in bytes; None if no mirror has served this directory yet, or the file is invalid."""
    try:
        return int(read_file(_file(root), 30))
    except (OSError, ValueError):
        return None


def _file(root: Path) -> Path:
    return root / "catalog" / "max-size"
