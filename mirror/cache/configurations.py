"""Reads an image's configuration from the cache, into which it is fetched if need be."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mirror.downloads.flight import Progress
from mirror.manifests import MAX_SIZE, Manifest, blobs_of, embedded_in
from mirror.names import Digest, Repository
from mirror.storage.store import Store

Fetch = Callable[[Repository, Digest], AsyncGenerator[Progress, None]]
"""Downloads a blob into the cache, and yields its progress. Raises MirrorError."""


async def read_configuration(
    store: Store, fetch: Fetch, repository: Repository, image: Manifest, fetching: Callable[[Digest], None] = lambda _: None
) -> bytes:
    """Returns an image's configuration; empty if it has none, or one of more than `MAX_SIZE` bytes. `fetching` is called before a download. Raises MirrorError."""
    config, _ = blobs_of(image.body)
    if config is None or not 0 < config.size <= MAX_SIZE:
        return b""
    if (embedded := embedded_in(image.body, config.digest)) is not None:
        return embedded
    if store.size(config.digest) is None:
        fetching(config.digest)
        async with aclosing(fetch(repository, config.digest)) as progress:
            async for _ in progress:
                pass
    return await read_cached_configuration(store, image)


async def read_cached_configuration(store: Store, image: Manifest) -> bytes:
    """Returns an image's configuration; empty if it has none, one of more than `MAX_SIZE` bytes, or one that is not cached. Raises MirrorError."""
    config, _ = blobs_of(image.body)
    if config is None or not 0 < config.size <= MAX_SIZE:
        return b""
    if (embedded := embedded_in(image.body, config.digest)) is not None:
        return embedded
    return await read_small(store, config.digest)


async def read_small(store: Store, digest: Digest) -> bytes:
    """Returns the first `MAX_SIZE` bytes of a cached blob; empty if it is not cached. Raises MirrorError."""
    reader = await store.open(digest)
    if reader is None:
        return b""
    async with aclosing(reader):
        parts = [part async for part in reader.parts(0, MAX_SIZE)]
        return b"".join(part if isinstance(part, bytes) else os.pread(part.fd, part.length, part.offset) for part in parts)
