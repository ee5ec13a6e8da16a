"""The file of a bundle, or the pieces that ``--split`` made of it, as one file that can be read anywhere."""

from __future__ import annotations

import io
import os
import re
import tarfile
from typing import Any, BinaryIO, Iterator

_PIECE = re.compile(r"(.*)\.(\d{3})")
_BUNDLE = re.compile(r"(.*)\.tar(?:\.\d{3})?")
_CHUNK = 1024 * 1024


class Unusable(Exception):
    """A file cannot be served from. The message names it, what is wrong, and what to do."""


class Changed(OSError):
    """A file is not the one any more that was read at the start."""


class Archive:
    """One bundle. Threads may read it at once: each opens the files that it reads."""

    def __init__(self, path: str) -> None:
        """`path` is a tar, or any of its pieces ``lab.tar.000``, ``lab.tar.001``, …. Raises Unusable."""
        self._paths = _pieces(path)
        match = _PIECE.fullmatch(os.path.basename(path))
        self.name = match[1] if match else os.path.basename(path)
        self._state: list[tuple[int, int]] = []
        """Of each piece its size in bytes, and when it was changed last."""
        for piece in self._paths:
            try:
                with open(piece, "rb") as file:
                    self._state.append(_state(file))
            except OSError as error:
                raise Unusable(f"{piece} cannot be read: {error.strerror}") from None
        if len({size for size, _ in self._state[:-1]}) > 1:
            raise Unusable(f"{self.name}: its pieces are not all of one size, so one is cut off: copy them again")
        self.size = sum(size for size, _ in self._state)

    def open_parts(self, start: int, length: int) -> Iterator[tuple[BinaryIO, int, int]]:
        """Yields the open file of each piece that holds some of the bytes, with the offset and the number of bytes in it. Raises Changed, OSError."""
        for path, state in zip(self._paths, self._state):
            size = state[0]
            if start < size and length > 0:
                count = min(length, size - start)
                with open(path, "rb", buffering=0) as file:
                    if _state(file) != state:
                        raise Changed(f"{path} has been replaced since the start: start again")
                    yield file, start, count
                start, length = 0, length - count
            else:
                start -= size

    def read_chunks(self, start: int, length: int) -> Iterator[bytes]:
        """Yields the bytes, some at a time. Raises Changed, OSError."""
        for file, offset, count in self.open_parts(start, length):
            file.seek(offset)
            left = count
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise Changed(f"{file.name} has become shorter since the start: start again")
                left -= len(chunk)
                yield chunk

    def members(self) -> dict[str, tuple[int, int]]:
        """Returns where each member of the tar begins, and its size, both in bytes. Raises Unusable."""
        found: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=io.BufferedReader(_Stream(self)), mode="r:") as tar:
                for member in tar:
                    if member.isreg():
                        found.setdefault(member.name, (member.offset_data, member.size))
        except tarfile.TarError as error:
            raise Unusable(f"{self.name} is damaged, cut off, or no tar ({error}): copy it again") from None
        except OSError as error:
            raise Unusable(f"{self.name} cannot be read: {error.strerror or error}") from None
        return {name: (start, size) for name, (start, size) in found.items() if start + size <= self.size}


class _Stream(io.RawIOBase):
    """An archive as a file object, for `tarfile`."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._archive.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        for file, offset, count in self._archive.open_parts(self._position, len(buffer)):
            file.seek(offset)
            data = file.read(count)
            buffer[: len(data)] = data
            self._position += len(data)
            return len(data)
        return 0


def find(folder: str) -> list[str]:
    """Returns the bundles of a folder, of split ones one piece, in natural order: ``lab.tar``, ``lab-2.tar``, ``lab-10.tar``."""

    def natural(name: str) -> list[tuple[bool, int, str]]:
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]

    # Names that begin with a dot are those that macOS writes beside every file of a stick, and files that are being written.
    found = (_BUNDLE.fullmatch(name) for name in sorted(os.listdir(folder), reverse=True) if not name.startswith("."))
    # Of pieces the one with the lowest number.
    names = {match[1]: match[0] for match in found if match}
    return [os.path.join(folder, names[name]) for name in sorted(names, key=natural)]


def _pieces(path: str) -> list[str]:
    folder, name = os.path.split(path)
    match = _PIECE.fullmatch(name)
    if match is None:
        return [path]
    beside = (_PIECE.fullmatch(other) for other in os.listdir(folder or "."))
    numbers = sorted(int(other[2]) for other in beside if other and other[1] == match[1])
    for expected, number in enumerate(numbers):
        if number != expected:
            raise Unusable(f"{match[1]}: the piece {match[1]}.{expected:03} is missing: copy it to the others")
    return [os.path.join(folder, f"{match[1]}.{number:03}") for number in numbers]


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
