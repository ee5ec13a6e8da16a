"""Files that name images: reading them, and finding what YAML files name. Everything here blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mirror.regular_files import read_file

Read = Callable[[Path, int], bytes]
"""Returns the first bytes of a file, so many at most. Raises OSError."""
Named = tuple[tuple[str, str], ...]
"""Image names as a file has them, each with its place in the file, such as ``services.web.image``."""


def read_regular(file: Path, most: int) -> bytes:
    """Reads a regular file, and no FIFO, whose other end might never come."""
    return read_file(file, most, follow=True)


def read_any(file: Path, most: int) -> bytes:
    """Reads also what a shell puts in the place of a file, as in ``--kubernetes <(helm template CHART)``."""
    with open(file, "rb") as opened:
        return opened.read(most)


def read_text(file: Path, most: int, read: Read) -> str:
    """Returns the text of a file of at most `most` bytes. Raises ValueError that names the file."""
    try:
        data = read(file, most + 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise ValueError(f"{file} cannot be read: it has more than {most} bytes")
    try:
        # Editors on Windows begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} cannot be read: it is not UTF-8") from None


class YamlFiles:
    """Reads YAML files, and remembers what the last ones named: parsing takes some ten seconds for each megabyte, and most files do not change."""

    def __init__(self, read: Read = read_any) -> None:
        self.read = read
        self._found: dict[tuple[object, bytes], Named] = {}
        self._before: dict[tuple[object, bytes], Named] = {}

    def start_round(self) -> None:
        """Begins to read all files again: what is in none of them now is forgotten at the next round."""
        self._before, self._found = self._found, {}

    def named(
        self, file: Path, most: int, find: Callable[[list[Any]], Named], hint: Callable[[str], str] = lambda text: ""
    ) -> Named:
        """Returns what `find` finds in the documents of a file of at most `most` bytes. Raises ValueError that names the file, also for the one that `find` raises.

        `hint` makes the end of the error of a text that is not YAML.
        """
        text = read_text(file, most, self.read)
        key = find, hashlib.sha256(text.encode()).digest()
        found = self._found.get(key, self._before.get(key))
        if found is None:
            try:
                found = find(_documents(text, hint))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
        self._found[key] = found
        return found


def _documents(text: str, hint: Callable[[str], str]) -> list[Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # JSON is YAML, and YAML 1.2 has no values such as "no" or "1:30" with a surprising meaning.
        return list(YAML(typ="safe", pure=True).load_all(text))
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:300]}{hint(text)}") from None
