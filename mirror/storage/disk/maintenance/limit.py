"""How large a cache directory may become, as its mirror was last started with: for commands that nobody tells it.

They would take the default, and throw away what a mirror with `--max-size` keeps.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mirror.durable import write_durably


def note(root: Path, max_size: int) -> None:
    """Writes it down, in bytes. A directory that cannot be written costs only that."""
    if noted(root) != max_size:
        with contextlib.suppress(OSError):
            write_durably(_file(root), f"{max_size}\n".encode())


def noted(root: Path) -> int | None:
    """In bytes; None where no mirror has served this directory yet, or what is there makes no sense."""
    try:
        return int(_file(root).read_text(errors="replace")[:30])
    except (OSError, ValueError):
        return None


def _file(root: Path) -> Path:
    return root / "catalog" / "max-size"
