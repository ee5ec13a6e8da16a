"""Reads a tar as it comes, from anybody: nothing is unpacked, and every number in it is bounded before it counts.

Python's own `tarfile` parses the headers. Its loop over them is not used, because it reads extended headers of any size into memory and keeps every member.
Formats: POSIX.1-2017, "pax"; GNU tar, "Basic Tar Format".
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from typing import Protocol

from mirror.errors import RequestInvalid

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1024 * 1024
MOST_MEMBERS = 100_000
"""Headers in a tar. A bundle of a thousand images has about 20,000."""
_MOST_EXTENDED = 64 * 1024
"""Bytes of an extended header; a path has at most 4096."""
_LONGEST_NAME = 4096
_LARGEST = 2**50
"""Bytes of a member."""
_MOST_AFTER_END = 1024 * 1024
"""Bytes that may follow the end marker: tar fills its last record with zeros."""
_FAULTS = (EOFError, zlib.error)
_LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_KINDS = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class ArchiveInvalid(RequestInvalid):
    """The archive is damaged, cut off, malicious, or no image archive. The message names the member, escaped if it is not printable."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Escapes what is not printable: names in an archive must not control a terminal, and may hold bytes that are not UTF-8."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, or a link, whose `target` is the name of the file. `size` in bytes."""

    name: str
    size: int
    target: str | None = None


class Readable(Protocol):
    """Bytes in order. Raises OSError, EOFError, zlib.error."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Seekable(Readable, Protocol):
    def seek(self, offset: int, whence: int = ..., /) -> int: ...


class Members(Protocol):
    """The files of a tar or a folder in order. Both methods block, and raise ArchiveInvalid, OSError."""

    def next(self) -> Member | None:
        """Returns the next file, None after the last. Skips what was not read of the previous one."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Reads from the file that `next` returned last. Returns 0 at its end."""
        ...


class Tar:
    """The members of a tar."""

    def __init__(self, stream: Readable, seek: Seekable | None = None) -> None:
        """`seek` is the same stream; with it, content that nobody reads is skipped without reading it."""
        self._stream = stream
        self._seek = seek
        self._member = ""
        self._left = self._padding = 0
        self._headers = 0
        self._names: set[str] = set()

    def next(self) -> Member | None:
        extended: dict[str, str] = {}
        while True:
            self._skip()
            header = self._header()
            if header is None:
                if extended:
                    raise ArchiveInvalid("the archive ends between an extended header and its member")
                self._drain()
                return None
            if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *_LONG_NAMES):
                self._extend(header, extended)
                continue
            member = self._member_of(header, extended)
            if member is not None:
                return member
            extended = {}

    def _header(self) -> tarfile.TarInfo | None:
        self._headers += 1
        if self._headers > MOST_MEMBERS:
            raise ArchiveInvalid(f"the archive has more than {MOST_MEMBERS} members, the last of them {self._member!r}")
        block = bytearray(_BLOCK)
        count = self._fill(memoryview(block))
        if count < _BLOCK:
            raise ArchiveInvalid(
                f"the archive is cut off after {self._member!r}"
                if self._member
                else "this is no archive, or it is cut off: it has less than one header"
            )
        try:
            return tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not any(block):
                return None
            after = f"after {self._member!r} there is no header of a tar" if self._member else "this is no tar"
            raise ArchiveInvalid(f"{after}: {error}") from None

    def _extend(self, header: tarfile.TarInfo, extended: dict[str, str]) -> None:
        """Adds what an extended header says of the member that follows."""
        if not 0 <= header.size <= _MOST_EXTENDED:
            raise ArchiveInvalid(
                f"after {self._member!r} there is an extended header of {header.size} bytes; {_MOST_EXTENDED} are allowed"
            )
        self._left, self._padding = header.size, -header.size % _BLOCK
        data = bytearray(header.size)
        self._whole(memoryview(data))
        if header.type in _LONG_NAMES:
            extended[_LONG_NAMES[header.type]] = _text(bytes(data).partition(b"\0")[0])
            return
        for key, value in _records(bytes(data), self._member):
            if key.startswith("GNU.sparse"):
                raise ArchiveInvalid(f"after {self._member!r} there is a sparse file: pack the archive without --sparse")
            if header.type != tarfile.XGLTYPE:
                extended[key] = value
            elif key in ("path", "size", "linkpath"):
                raise ArchiveInvalid(f"after {self._member!r} there is a header that gives all members the same {key}")

    def _member_of(self, header: tarfile.TarInfo, extended: dict[str, str]) -> Member | None:
        """Returns a file or a link, None for a folder. Raises ArchiveInvalid for what must not be in an archive."""
        given = extended.get("path", header.name)
        size = header.size
        if "size" in extended:
            size = (
                int(extended["size"])
                if extended["size"].isascii() and extended["size"].isdigit() and len(extended["size"]) < 20
                else -1
            )
        if not 0 <= size <= _LARGEST:
            raise ArchiveInvalid(f"{_shown(given)} has a size that no file has: {extended.get('size', header.size)}")
        is_folder = header.type == tarfile.DIRTYPE
        name = clean(given, is_folder)
        self._member = name
        if is_folder:
            if size:
                raise ArchiveInvalid(f"{_shown(name)} is a folder with content")
            return None
        if header.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            self._add(name)
            target = extended.get("linkpath", header.linkname)
            if header.type == tarfile.SYMTYPE:
                target = _resolved(name, target)
            return Member(name, 0, clean(target))
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            kind = _KINDS.get(header.type, f"of the unknown type {header.type!r}")
            raise ArchiveInvalid(
                f"{_shown(name)} is {kind}: an archive of images has only files, folders and links to its own files"
            )
        self._add(name)
        self._left, self._padding = size, -size % _BLOCK
        return Member(name, size)

    def _add(self, name: str) -> None:
        if name in self._names:
            raise ArchiveInvalid(f"{_shown(name)} is there twice")
        self._names.add(name)

    def readinto(self, buffer: memoryview) -> int:
        wanted = buffer[: self._left]
        if not wanted:
            return 0
        count = self._read(wanted)
        if count == 0:
            raise ArchiveInvalid(f"the archive is cut off in {self._member!r}: {self._left} bytes are missing")
        self._left -= count
        return count

    def _whole(self, buffer: memoryview) -> None:
        while buffer:
            buffer = buffer[self.readinto(buffer) :]

    def _skip(self) -> None:
        """Skips the rest of the member. The next read finds out if that was beyond the end of the archive."""
        rest = self._left + self._padding
        self._left = self._padding = 0
        if self._seek is not None:
            self._seek.seek(rest, 1)
            return
        view = memoryview(bytearray(min(rest, _CHUNK)))
        while rest:
            count = self._read(view[:rest])
            if count == 0:
                raise ArchiveInvalid(f"the archive is cut off in {self._member!r}: {rest} bytes are missing")
            rest -= count

    def _drain(self) -> None:
        """Reads what follows the end marker, so that the writer of a pipe sees no error, and the checksum of a compressed archive is compared."""
        view, left = memoryview(bytearray(_CHUNK)), _MOST_AFTER_END
        while left > 0 and (count := self._read(view)):
            left -= count

    def _fill(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer) and (count := self._read(buffer[done:])):
            done += count
        return done

    def _read(self, buffer: memoryview) -> int:
        place = repr(self._member) if self._member else "its beginning"
        try:
            return self._stream.readinto(buffer) or 0
        except _FAULTS as error:
            raise ArchiveInvalid(f"the compressed archive is damaged or cut off, at {place}: {error}") from None
        except OSError as error:
            raise ArchiveInvalid(f"the archive cannot be read, at {place}: {error.strerror or error}") from None


def clean(name: str, is_folder: bool = False) -> str:
    """Returns a member's name without ``./``. Raises ArchiveInvalid for names that lead out of the archive."""
    if not name or len(name) > _LONGEST_NAME or "\0" in name:
        raise ArchiveInvalid(f"{_shown(name)} is no name of a file")
    if name.startswith("/"):
        raise ArchiveInvalid(f"{_shown(name)} is an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveInvalid(f"{_shown(name)} leads out of the archive")
    if not parts and not is_folder:
        raise ArchiveInvalid(f"{_shown(name)} is no name of a file")
    return "/".join(parts)


def _resolved(name: str, target: str) -> str:
    """Returns what a symbolic link points to, by the names only: nothing on the disk is accessed."""
    if target.startswith("/"):
        raise ArchiveInvalid(f"{_shown(name)} is a link to an absolute path, {_shown(target)}")
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                raise ArchiveInvalid(f"{_shown(name)} is a link that leads out of the archive, to {_shown(target)}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _records(data: bytes, after: str) -> list[tuple[str, str]]:
    """Returns the records of a pax header, ``LENGTH KEY=VALUE\\n``. Raises ArchiveInvalid."""
    found = []
    rest = data.rstrip(b"\0")
    while rest:
        digits, space, _ = rest[:12].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        key, equals, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        if not 0 < length <= len(rest) or not equals or rest[length - 1 : length] != b"\n":
            raise ArchiveInvalid(f"after {after!r} there is a malformed extended header")
        found.append((_text(key), _text(value)))
        rest = rest[length:]
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")
