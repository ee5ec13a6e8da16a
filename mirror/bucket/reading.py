"""The bytes of a blob of the store, as they are written to the bucket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mirror.errors import StorageUnreadable
from mirror.storage.slices import FileSlice, Reader


async def slices(reader: Reader) -> AsyncGenerator[tuple[int, int, int], None]:
    """Yields slices of open files: a descriptor, an offset and a length in bytes. Raises StorageUnreadable."""
    async with aclosing(reader.parts(0, None)) as parts:
        async for part in parts:
            if not isinstance(part, FileSlice):
                raise StorageUnreadable("a blob is not in one file")
            yield part.fd, part.offset, part.length
