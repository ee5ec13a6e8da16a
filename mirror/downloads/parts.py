"""A reader of a finished blob. The pieces that readers give are storage's: see mirror/storage/slices.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from mirror.storage.disk.blobs import BlobFile
from mirror.storage.slices import FileSlice as FileSlice
from mirror.storage.slices import Part as Part
from mirror.storage.slices import Reader as Reader


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
