"""Changes to other programs' configuration files that can be undone byte for byte.

Beside a changed file, ``NAME.before-mirror`` holds the original content, if there was any, and ``NAME.mirror-undo`` records what was done. Undoing removes both.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.clients import Conflict, File
from mirror.durable import write_durably

_BACKUP = ".before-mirror"
_RECORD = ".mirror-undo"
_SECRET = re.compile(r"((?:password|passwd|token|secret|auth|identity)[a-z_]*[\"']?\s*[:=]\s*).+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Change:
    """A file's current and new content; None where there is no file."""

    path: Path
    now: bytes | None
    before: bytes | None
    """The content before this program first changed the file. A second change starts from it, so that an earlier mirror is not left in."""
    after: bytes

    @property
    def needed(self) -> bool:
        return self.now != self.after

    def diff(self) -> str:
        """Returns a unified diff with values that look like secrets masked, since the output may be shared."""
        old, new = ((text or b"").decode(errors="replace").splitlines(keepends=True) for text in (self.now, self.after))
        lines = difflib.unified_diff(old, new, "/dev/null" if self.now is None else str(self.path), str(self.path))
        return "".join(_SECRET.sub(r"\1…", line.rstrip("\n")) + "\n" for line in lines)

    def write(self) -> None:
        """Writes the backup, the record and the file, in this order, so that a crash can be undone. Raises OSError."""
        made = _make_folders(self.path.parent)
        known = _read_record(self.path)
        if known is not None:
            made = [*known["folders"], *made]
        if self.before is not None:
            _replace(_beside(self.path, _BACKUP), self.before, self.path)
        record = {"existed": self.before is not None, "written": _digest(self.after), "folders": made}
        _replace(_beside(self.path, _RECORD), json.dumps(record).encode(), None)
        _replace(self.path, self.after, self.path)


def prepare(file: File, path: Path) -> Change:
    """Returns the change that makes `path` what `file` asks for. Raises Conflict, OSError."""
    now = before = _read(path)
    if _is_ours(path, now):
        before = _read(_beside(path, _BACKUP))
    try:
        text = (before or b"").decode()
    except UnicodeDecodeError:
        raise Conflict("is not UTF-8 text") from None
    return Change(path, now, before, file.merge(text).encode())


def changed(pattern: Path) -> list[Path]:
    """Returns the matching files that this program has changed; ``*`` stands for a registry."""
    root = Path(pattern.anchor)
    found = root.glob(str(pattern.relative_to(root)) + _RECORD)
    return sorted(path.with_name(path.name.removesuffix(_RECORD)) for path in found)


def undo(paths: list[Path]) -> None:
    """Restores all files, or none. Raises Conflict if one has been changed since by somebody else, OSError."""
    for path in paths:
        if not _is_ours(path, _read(path)):
            raise Conflict(f"{path} has been changed since: compare it with {path.name}{_BACKUP} and restore it by hand")
    folders: set[str] = set()
    for path in paths:
        record = _read_record(path)
        assert record is not None
        folders.update(record["folders"])
        if record["existed"]:
            _replace(path, _beside(path, _BACKUP).read_bytes(), path)
            _beside(path, _BACKUP).unlink()
        else:
            path.unlink(missing_ok=True)
        _beside(path, _RECORD).unlink()
    for folder in sorted(folders, key=len, reverse=True):
        with contextlib.suppress(OSError):
            # Fails if it holds anything else.
            Path(folder).rmdir()


def _is_ours(path: Path, now: bytes | None) -> bool:
    """Returns whether `now` is what was last written, or the original content after a crash just before that."""
    record = _read_record(path)
    if record is None:
        return False
    return (now is not None and _digest(now) == record["written"]) or now == _read(_beside(path, _BACKUP))


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(_beside(path, _RECORD).read_bytes())
        return record if {"existed", "written", "folders"} <= set(record) else None
    except (OSError, ValueError, TypeError):
        return None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _make_folders(folder: Path) -> list[str]:
    """Creates a folder and its parents. Returns those that were created, the outermost first."""
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [str(made) for made in reversed(missing)]


def _replace(path: Path, data: bytes, like: Path | None) -> None:
    """Replaces a file atomically. Owner and mode are those of `like` if it exists. A symbolic link stays one."""
    target = Path(os.path.realpath(path))

    def take_over(descriptor: int) -> None:
        mode = 0o644
        if like is not None and like.exists():
            found = like.stat()
            mode = found.st_mode & 0o7777
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, mode)

    write_durably(target, data, take_over)
