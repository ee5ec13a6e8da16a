"""Sources of archives: a file, its pieces or a pipe, compressed or not; or a folder."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import zstandard

from mirror.bundles.archive import MOST_MEMBERS, ArchiveInvalid, Member, Members, Tar
from mirror.regular_files import open_file

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BUFFER = 1024 * 1024
_WINDOW = 27
"""The largest window of zstd that is unpacked, as a power of two: 128 MiB, what ``zstd --long`` makes."""
_PIECE = re.compile(r"(.+)\.(\d{3,})")
_DEEPEST = 3
"""Levels of folders in a layout, or an unpacked archive."""


class Source(Protocol):
    """An archive. `str` of it is its name for people."""

    rereadable: bool
    """False for a pipe, which is read once."""
    size: int | None
    """Its size in bytes; None if that is not known."""

    def open(self) -> contextlib.AbstractContextManager[Members]:
        """Opens it at its beginning. Raises ArchiveInvalid, OSError."""
        ...

    def close(self) -> None: ...


class Pieces(io.RawIOBase):
    """Open files, one after the other, as one."""

    def __init__(self, files: Sequence[int]) -> None:
        self._files = list(files)
        self._starts = [0]
        for fd in files:
            self._starts.append(self._starts[-1] + os.fstat(fd).st_size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._position = max(0, offset + (0, self._position, self._starts[-1])[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        for number, fd in enumerate(self._files):
            if self._starts[number] <= self._position < self._starts[number + 1]:
                room = memoryview(buffer).cast("B")[: self._starts[number + 1] - self._position]
                count = os.preadv(fd, [room], self._position - self._starts[number])
                self._position += count
                return count
        return 0


class Files:
    """A file, or the pieces of one."""

    rereadable = True

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens them, and keeps them open until `close`. Raises OSError if one cannot be read."""
        self._paths = list(paths)
        self._open: list[int] = []
        try:
            for path in paths:
                self._open.append(open_file(path, os.O_RDONLY, follow=True))
        except OSError:
            self.close()
            raise
        self.size: int | None = sum(os.fstat(fd).st_size for fd in self._open)

    def __str__(self) -> str:
        return str(self._paths[0]) if len(self._paths) == 1 else f"{self._paths[0]} to {self._paths[-1].name}"

    def open(self) -> contextlib.AbstractContextManager[Members]:
        return _members(io.BufferedReader(Pieces(self._open), _BUFFER), True)

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())


class Pipe:
    """An open file that is read once, and then closed."""

    rereadable = False
    size: int | None = None

    def __init__(self, file: io.RawIOBase, name: str = "standard input") -> None:
        self._stream: io.BufferedReader[Any] = io.BufferedReader(file, _BUFFER)
        self._name = name

    def __str__(self) -> str:
        return self._name

    def open(self) -> contextlib.AbstractContextManager[Members]:
        return _members(self._stream, False)

    def close(self) -> None:
        self._stream.close()


@contextlib.contextmanager
def _members(stream: io.BufferedReader[Any], seekable: bool) -> Iterator[Members]:
    magic = stream.peek(4)
    if magic.startswith(_GZIP):
        with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:
            yield Tar(_Guarded(unzipped, (gzip.BadGzipFile,)))
    elif magic.startswith(_ZSTD):
        unpacker = zstandard.ZstdDecompressor(max_window_size=2**_WINDOW)
        with unpacker.stream_reader(stream, read_across_frames=True, closefd=False) as unzipped:
            yield Tar(_Guarded(unzipped, (zstandard.ZstdError,)))
    else:
        yield Tar(stream, stream if seekable else None)


class _Guarded:
    """A decompressor whose errors are EOFError, whatever its library raises."""

    def __init__(self, stream: Any, faults: tuple[type[Exception], ...]) -> None:
        self._stream = stream
        self._faults = faults

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._faults as error:
            raise EOFError(str(error)) from None


class Folder:
    """An OCI layout, or an archive that was unpacked."""

    rereadable = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size: int | None = None

    def __str__(self) -> str:
        return str(self._path)

    def open(self) -> contextlib.AbstractContextManager[Members]:
        return contextlib.closing(_FolderMembers(self._path))

    def close(self) -> None:
        """Does nothing: no file stays open between two readings."""


class _FolderMembers:
    """The regular files of a folder, those that describe it first, as in a bundle. Links are not followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        names = sorted(_walk(path, ""), key=lambda member: (member.name.count("/"), member.name))
        self._members = iter(names)
        self._fd: int | None = None
        self._name = ""
        self._left = 0

    def next(self) -> Member | None:
        self.close()
        member = next(self._members, None)
        if member is not None and member.target is None:
            self._name = member.name
            self._fd = open_file(self._path / member.name, os.O_RDONLY)
            self._left = member.size
        return member

    def readinto(self, buffer: memoryview) -> int:
        wanted = buffer[: self._left]
        if self._fd is None or not wanted:
            return 0
        count = os.readv(self._fd, [wanted])
        if count == 0:
            raise ArchiveInvalid(f"{self._name} became shorter while it was read")
        self._left -= count
        return count

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _walk(folder: Path, prefix: str) -> list[Member]:
    found: list[Member] = []
    with os.scandir(folder / prefix) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_file(follow_symlinks=False):
                found.append(Member(name, entry.stat(follow_symlinks=False).st_size))
            elif entry.is_dir(follow_symlinks=False) and name.count("/") < _DEEPEST - 1:
                found += _walk(folder, f"{name}/")
            if len(found) > MOST_MEMBERS:
                raise ArchiveInvalid(f"{folder} has more than {MOST_MEMBERS} files: the folder of an image layout is expected")
    return found


def sources_of(names: Sequence[str], stdin: Callable[[], io.RawIOBase]) -> list[Source]:
    """Returns the archives that arguments name: pieces ``lab.tar.000``, ``lab.tar.001``, … are one, and those beside the first belong to it.

    Raises ArchiveInvalid if a piece is missing; OSError.
    """
    found: dict[str, Source] = {}
    for name in names:
        if name == "-":
            found.setdefault("-", Pipe(stdin()))
            continue
        path = Path(name)
        if path.is_dir():
            found.setdefault(name, Folder(path))
            continue
        match = _PIECE.fullmatch(path.name)
        if match is None and not path.exists():
            firsts = [f"{path.name}.{end}" for end in ("000", "001") if path.with_name(f"{path.name}.{end}").exists()]
            match = _PIECE.fullmatch(firsts[0]) if firsts else None
        if match is None:
            found.setdefault(name, Files([path]))
        else:
            whole = path.with_name(match[1])
            given = [Path(other) for other in names if (one := _PIECE.fullmatch(Path(other).name)) and one[1] == match[1]]
            if str(whole) not in found:
                found[str(whole)] = Files(_pieces(whole, given))
    return list(found.values())


def _pieces(whole: Path, given: Sequence[Path]) -> list[Path]:
    numbered = {int(path.suffix[1:]): path for path in given}
    for path in whole.parent.glob(f"{_escaped(whole.name)}.*"):
        if (match := _PIECE.fullmatch(path.name)) and match[1] == whole.name:
            numbered.setdefault(int(match[2]), path)
    numbers = sorted(numbered)
    first = min(numbers[0], 1)
    for number in range(first, numbers[-1]):
        if number not in numbered:
            raise ArchiveInvalid(f"{whole.name}.{number:03} is missing: put all pieces beside each other, or name them all")
    return [numbered[number] for number in numbers]


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
