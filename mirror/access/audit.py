"""The audit log: a line of JSON for each question that was decided. A thread writes them; if it falls far behind, lines are dropped, and that is noted.

Fields: `time` (UTC), `user`, `token` (its name), `address`, `action`, `repository`, `reference`, `digest`, `rule`, `verdict` (``allowed``, ``denied``, ``wrong login``,
``limited``), `reason`. Passwords, tokens and secret paths are never in it. The file is opened anew when it was moved away, as logrotate does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mirror.regular_files import NoFile, open_file

log = logging.getLogger(__name__)

_MOST_WAITING = 100_000
_PAUSE = 0.2
"""Seconds between two writes: lines are written together."""
_TAIL = 16 * 1024 * 1024
"""Bytes at the end of a log that are searched for what guards have refused."""
_BY_GUARD = re.compile(r'guard "(.*?)"; refused(: .*)?', re.DOTALL)
"""The reason of what a guard refused. Earlier versions did not note why."""
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


@dataclass(frozen=True, slots=True)
class RefusedClient:
    """Somebody to whom a guard refused something: a user, the name of a token, an address, each empty if there is none."""

    user: str
    token: str
    address: str
    count: int
    last: str
    """When, the last time, as the log has it."""


def refused_by_guards(file: Path) -> Mapping[tuple[str, str, str], list[RefusedClient]]:
    """Returns to whom guards have refused something, by rule, repository and reference, the latest first; as far back as the last 16 MiB of the log, and of the one
    before it, go. Blocks. Raises OSError; NoFile where there is neither."""
    found: dict[tuple[str, str, str], dict[tuple[str, str, str], RefusedClient]] = {}
    for entry in _entries(file, _TAIL, b'"denied"'):
        by = _BY_GUARD.fullmatch(str(entry.get("reason", "")))
        if by is None or entry.get("verdict") != "denied":
            continue
        who = str(entry.get("user", "")), str(entry.get("token", "")), str(entry.get("address", ""))
        clients = found.setdefault((by[1], str(entry.get("repository", "")), str(entry.get("reference", ""))), {})
        before = clients.pop(who, None)
        clients[who] = RefusedClient(*who, 1 if before is None else before.count + 1, str(entry.get("time", "")))
    return {what: list(clients.values())[::-1] for what, clients in found.items()}


def read_audit_log(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a log, and before them those of FILE.1 if there is one. Blocks. Raises OSError; NoFile where there is neither."""
    return _entries(file, None)


def _entries(file: Path, most: int | None, having: bytes = b"") -> Iterator[dict[str, Any]]:
    """Yields the entries in the last `most` bytes of each of the two logs, those whose lines have something in them. Raises as `read_audit_log` does."""
    found = False
    for path in (file.with_name(f"{file.name}.1"), file):
        with contextlib.suppress(NoFile), open(open_file(path, os.O_RDONLY, follow=True), "rb") as opened:
            found = True
            if most is not None and (size := os.fstat(opened.fileno()).st_size) > most:
                opened.seek(size - most)
            for line in opened:
                if having not in line:
                    continue
                # The first line may be cut.
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
