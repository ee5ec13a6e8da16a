"""Block lists: a digest in each line, with a reason after it, and ``#`` comments."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from mirror.errors import DigestInvalid
from mirror.names import Digest
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
        self.urls = [source for source in sources if source.startswith(("http://", "https://"))]
        self.entries: dict[str, str] = {}
        """Reasons by the hexadecimal digits of digests. It stays the same object when it is read again."""
        self._states: dict[str, _State] = {}
        self._read: dict[str, Mapping[str, str]] = {}

    def read_changed_files(self) -> Mapping[str, Mapping[str, str]]:
        """Returns what is in the files that have changed since the last call. Blocks.

        A file that cannot be read keeps the entries that it had: an editor may have moved it away for a moment.
        """
        found: dict[str, Mapping[str, str]] = {}
        for file in self.sources:
            if file in self.urls or ((state := _state(file)) == self._states.get(file, ()) and file in self._states):
                continue
            self._states[file] = state
            try:
                found[file] = parse(read_file(file, LARGEST, follow=True).decode(errors="replace"), file)
            except OSError as error:
                log.error("the block list %s cannot be read: %s; what it said last stays in force", file, error.strerror or error)
        return found

    def put_in_force(self, found: Mapping[str, Mapping[str, str]]) -> bool:
        """Takes what sources say now. Returns whether that changes anything."""
        if not found:
            return False
        self._read.update(found)
        merged = {digest: reason for source in self.sources for digest, reason in self._read.get(source, {}).items()}
        if self.entries == merged:
            return False
        self.entries.clear()
        self.entries.update(merged)
        log.info("%d digests are blocked by %s", len(merged), ", ".join(self.sources))
        return True


def parse(text: str, name: str) -> dict[str, str]:
    """Returns the reasons in a list, by the hexadecimal digits of digests. Lines that name no digest are logged, and the others count."""
    found: dict[str, str] = {}
    faults: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        try:
            found[Digest.parse(words[0].lower()).hex] = words[1].strip() if len(words) > 1 else ""
        except DigestInvalid:
            faults.append(number)
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
