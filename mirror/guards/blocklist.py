"""Block lists: a digest in each line, with a reason after it, and ``#`` comments; or advisories in OSV form, as JSON or a zip of that."""

from __future__ import annotations

import codecs
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence

from mirror.errors import DigestInvalid
from mirror.guards.osv import MAGIC, parse_json, parse_zip, reason_in
from mirror.names import Digest
from mirror.redaction import redacted
from mirror.regular_files import read_file

log = logging.getLogger(__name__)

LARGEST = 64 * 1024 * 1024
"""Bytes of a list."""
_MOST_FAULTS = 5
"""Lines that cannot be used, and are named in the log."""

_State = tuple[int, int, int] | None
"""A file's inode, size and time of modification; None if it is not there."""


class Blocklist:
    """The entries of some files and URLs together."""

    def __init__(self, sources: Sequence[str]) -> None:
        """`sources` are paths, and URLs of http or https."""
        self.sources = sources
        self.entries: dict[str, str] = {}
        """Reasons by the hexadecimal digits of digests. It stays the same object when it is read again."""

    def put_in_force(self, lists: Mapping[str, Mapping[str, str]]) -> bool:
        """Takes what each source says now; one that is not in `lists` says nothing yet. Returns whether that changes anything."""
        merged = {digest: reason for source in self.sources for digest, reason in lists.get(source, {}).items()}
        if self.entries == merged:
            return False
        self.entries.clear()
        self.entries.update(merged)
        log.info("%d digests are blocked by %s", len(merged), ", ".join(map(redacted, self.sources)))
        return True


class Files:
    """Reads block lists from files, again when they change."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}
        """Of files as they were read last."""
        self._faults: dict[str, str] = {}
        """Why a file cannot be read now: it is logged once."""

    @property
    def faulty(self) -> Collection[str]:
        """Those that could not be read when they were looked at last."""
        return self._faults.keys()

    def read_changed(self, files: Iterable[str]) -> dict[str, dict[str, str]]:
        """Returns what is in the files that have changed since they were read last. Blocks.

        What cannot be read is tried again at the next call, and is not in the result: an editor may have moved it away for a moment.
        """
        found = {}
        for file in files:
            state = _state(file)
            if state is not None and state == self._states.get(file):
                continue
            try:
                found[file] = read_list(read_file(file, LARGEST + 1, follow=True), file)
            except (OSError, ValueError) as error:
                fault = (error.strerror if isinstance(error, OSError) else None) or str(error)
                if self._faults.get(file) != fault:
                    log.error("the block list %s cannot be read: %s; what it said last stays in force", file, fault)
                self._faults[file] = fault
                if isinstance(error, ValueError):
                    # It is the same until the file changes.
                    self._states[file] = state
                else:
                    # It may come back as it was.
                    self._states.pop(file, None)
            else:
                self._faults.pop(file, None)
                self._states[file] = state
        return found


def read_list(data: bytes, name: str) -> dict[str, str]:
    """Returns the reasons in a list, by the hexadecimal digits of digests. Raises ValueError if it is none, or too long; then it blocks nothing, and what it
    said before should stay."""
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB")
    if data.startswith(MAGIC):
        found = parse_zip(data)
    else:
        text = _decode(data)
        if not text.lstrip().startswith(("{", "[")):
            return parse(text, name)
        found = parse_json(text.encode())
    if not found:
        log.warning("%s: its advisories name no image by its digest, so nothing is blocked by it", name)
    return found


def _decode(data: bytes) -> str:
    """Returns the text of a list: UTF-8, or UTF-16 with a byte order mark, as PowerShell writes it."""
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig", errors="replace")


def parse(text: str, name: str) -> dict[str, str]:
    """Returns the reasons in a list, by the hexadecimal digits of digests. Lines that name no digest are logged, and the others count.

    Raises ValueError if there are lines, and none of them has a digest: that is something else, such as a page that asks for a password.
    """
    found: dict[str, str] = {}
    faults: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        try:
            found[Digest.parse(words[0].lower()).hex] = reason_in(words[1]) if len(words) > 1 else ""
        except DigestInvalid:
            faults.append(number)
    if faults and not found:
        raise ValueError("it has lines, and none of them begins with a digest")
    if faults:
        lines = ", ".join(map(str, faults[:_MOST_FAULTS]))
        more = f" and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        log.error('%s: line %s%s: "sha256:… reason" is expected; the other lines count', name, lines, more)
    return found


def _state(file: str) -> _State:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
