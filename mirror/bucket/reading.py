"""What is read of the store for a bucket: the bytes of a blob, and what size manifests say that one has."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mirror.errors import StorageUnreadable
from mirror.manifests import blobs_of
from mirror.names import Digest
from mirror.storage.slices import FileSlice, Reader
from mirror.storage.store import Store

_MOST_MANIFESTS = 10
"""That are read for the size of a blob."""


async def slices(reader: Reader) -> AsyncGenerator[tuple[int, int, int], None]:
    """Yields slices of open files: a descriptor, an offset and a length in bytes. Raises StorageUnreadable."""
    async with aclosing(reader.parts(0, None)) as parts:
        async for part in parts:
            if not isinstance(part, FileSlice):
                raise StorageUnreadable("a blob is not in one file")
            yield part.fd, part.offset, part.length


async def named_sizes(store: Store, blob: Digest) -> set[int]:
    """Returns what sizes in bytes the cached manifests that name a blob say that it has; none where they do not say."""
    sizes = set()
    for name in (await store.naming(blob, 0.0))[:_MOST_MANIFESTS]:
        if (manifest := await store.manifest(name)) is not None:
            config, layers = blobs_of(manifest.body)
            sizes |= {one.size for one in (config, *layers) if one is not None and one.digest == blob and one.size > 0}
    return sizes
