"""The audit log: a line of JSON for each question that was decided. A thread writes them; if it falls far behind, lines are dropped, and that is noted.

Fields: `time` (UTC), `user`, `token` (its name), `address`, `action`, `repository`, `reference`, `digest`, `rule`, `verdict` (``allowed``, ``denied``, ``wrong login``,
``limited``), `reason`. Passwords, tokens and secret paths are never in it. The file is opened anew when it was moved away, as logrotate does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mirror.regular_files import NoFile, open_file

log = logging.getLogger(__name__)

_MOST_WAITING = 100_000
_PAUSE = 0.2
"""Seconds between two writes: lines are written together."""
FIELDS = ("user", "token", "address", "action", "repository", "reference", "digest", "rule", "verdict", "reason")


class AuditLog:
    """Appends to a file that only its owner can read, and which several processes may share."""

    def __init__(self, file: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        self._file = file
        self._fd = self._open()
        self._waiting: SimpleQueue[tuple[float, tuple[str, ...]] | None] = SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="audit log", daemon=True)
        self._thread.start()

    def note(self, *values: str) -> None:
        """Adds a line with the values of `FIELDS`, in this order; empty ones are left out."""
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put((time.time(), values))
        else:
            self._dropped += 1

    def close(self) -> None:
        """Writes the lines that are left, for two seconds at most."""
        self._waiting.put(None)
        self._thread.join(2.0)

    def _open(self) -> int:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open_file(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=True)

    def _write(self) -> None:
        while True:
            entries = [self._waiting.get()]
            while not self._waiting.empty():
                entries.append(self._waiting.get())
            lines = [_line(*entry) for entry in entries if entry is not None]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                lines.append(json.dumps({"time": _time(time.time()), "dropped_lines": dropped}) + "\n")
            self._append("".join(lines).encode())
            if None in entries:
                os.close(self._fd)
                return
            time.sleep(_PAUSE)

    def _append(self, data: bytes) -> None:
        try:
            if _is_another(self._file, self._fd):
                opened = self._open()
                os.close(self._fd)
                self._fd = opened
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            log.error("the audit log %s cannot be written: %s", self._file, error, extra={"cause": str(error)})

    def note_by_hand(self, action: str, who: str, image: str, digest: str, why: str) -> None:
        """Adds a line for what somebody has decided by hand on an image, ``REPOSITORY:TAG``, or on a digest."""
        repository, _, tag = image.rpartition(":") if image else ("", "", "")
        self.note(who, "", "", action, repository, tag, digest, "", "allowed", why)


def read_audit_log(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a log, and before them those of FILE.1 if there is one. Blocks. Raises OSError; NoFile where there is neither."""
    found = False
    for path in (file.with_name(f"{file.name}.1"), file):
        with contextlib.suppress(NoFile), open(open_file(path, os.O_RDONLY, follow=True), "rb") as opened:
            found = True
            for line in opened:
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        yield entry
    if not found:
        raise NoFile(2, "there is no audit log yet", str(file))


def _is_another(file: Path, fd: int) -> bool:
    try:
        there = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return True
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def _line(moment: float, values: tuple[str, ...]) -> str:
    return (
        json.dumps({"time": _time(moment), **{name: value for name, value in zip(FIELDS, values, strict=True) if value}}) + "\n"
    )


def _time(moment: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))}.{int(moment * 1000) % 1000:03d}Z"
