"""The status of each process that shares a cache directory: a small JSON file, ``live/<process>.json``.

A file that was not written recently belongs to a dead process, and is removed. The process ID does not show that, since the processes may run in different
containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from mirror.durable import replace
from mirror.regular_files import read_file
from mirror.storage.disk.files import make_private_folder

_SILENT = 10.0
"""Seconds without a write after which a file is ignored."""
_DEAD = 60.0
"""Seconds without a write after which a file is removed."""
_LARGEST = 1024 * 1024
"""Bytes of a file that are read."""


class Statuses:
    """The status files of all processes, and this one's own. All methods block."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "live"
        self._file = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"

    def write(self, value: Any) -> None:
        """Writes a JSON value for the other processes; None removes the file. Errors of the disk are ignored."""
        with contextlib.suppress(OSError):
            if value is None:
                self._file.unlink()
            else:
                make_private_folder(self._folder)
                replace(self._file, json.dumps(value).encode())

    def read(self) -> list[Any]:
        """Returns the values of all processes, this one included, and removes the files of dead ones. Invalid JSON is ignored."""
        found = []
        for path in sorted(self._folder.glob("*")):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                age = time.time() - path.stat(follow_symlinks=False).st_mtime
                if age > _DEAD:
                    path.unlink()
                elif age < _SILENT and path.suffix == ".json":
                    found.append(json.loads(read_file(path, _LARGEST)))
        return found
