"""What a reader gets: pieces of a blob, in order, as stretches of an open file or as bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from mirror.storage.disk.blobs import BlobFile


@dataclass(frozen=True, slots=True)
class FileSlice:
    """`length` bytes from `offset` of the open file `fd`: for sendfile, so that they need not pass through this process."""

    fd: int
    offset: int
    length: int


Part = FileSlice | bytes


class Reader(Protocol):
    """One client's view of one blob. Whoever holds it closes it."""

    @property
    def size(self) -> int | None:
        """Bytes of the whole blob; None where not even upstream knows before its end."""
        ...

    def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        """The bytes ``[start, stop)``, as they are there. Raises MirrorError where they end too early: they must not look complete then."""
        ...

    async def aclose(self) -> None: ...


class FileReader:
    """A reader of a finished blob."""

    def __init__(self, file: BlobFile) -> None:
        self.size: int | None = file.size
        self._file = file

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        end = self._file.size if stop is None else stop
        if start < end:
            yield FileSlice(self._file.fd, start, end - start)

    async def aclose(self) -> None:
        self._file.close()
