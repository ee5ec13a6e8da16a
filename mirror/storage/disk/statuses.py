"""What each process that shares a cache directory tells the others about itself: a small JSON file each, ``live/<process>.json``.

A file that has not been written lately belongs to a process that has died, and is removed. The process's number does not tell, since the processes on one
directory may run in different containers.
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
"""Seconds after which a file that is no longer written does not count."""
_DEAD = 60.0
"""Seconds after which it is removed."""
_LARGEST = 1024 * 1024
"""Bytes that are read of a file."""


class Statuses:
    """This process's file, and everybody's. All methods block."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "live"
        self._file = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"

    def write(self, value: Any) -> None:
        """Writes a JSON value for the others to read; None removes the file. A disk that does not take it costs only that."""
        with contextlib.suppress(OSError):
            if value is None:
                self._file.unlink()
            else:
                make_private_folder(self._folder)
                replace(self._file, json.dumps(value).encode())

    def read(self) -> list[Any]:
        """Returns the values of all processes, this one included, and removes the files of dead ones. What is no JSON is passed over."""
        found = []
        for path in sorted(self._folder.glob("*")):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                age = time.time() - path.stat(follow_symlinks=False).st_mtime
                if age > _DEAD:
                    path.unlink()
                elif age < _SILENT and path.suffix == ".json":
                    found.append(json.loads(read_file(path, _LARGEST)))
        return found
