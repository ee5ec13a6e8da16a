"""Reads what an image is that clients do not get yet, for a person who decides on it: its manifest and configuration, and no layer.

They are kept in memory for the next who looks, and put nowhere where clients get them: whoever pulls goes through the guard, and asks the registry anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import aclosing
from typing import Protocol

from mirror.cache.comparing import MOST_PLATFORMS, Documents, documents_of
from mirror.cache.configurations import read_small
from mirror.downloads.direct import DirectReader
from mirror.downloads.download import Source as BlobSource
from mirror.errors import ManifestUnknown, UpstreamTimeout
from mirror.manifests import INDEXES, MAX_SIZE, Manifest, blobs_of, embedded_in, entries_of
from mirror.names import Digest, Reference, Repository
from mirror.storage.store import Store
from mirror.tasks import SingleFlight

_MOST = 16
"""Images that are kept in memory."""
_PATIENCE = 20.0
"""Seconds in which all documents of an image must be here."""


class Source(Protocol):
    """A registry. Raises MirrorError."""

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest: ...
    def blob(self, repository: Repository, digest: Digest) -> BlobSource: ...


class Previews:
    """The documents of images, fetched when somebody asks."""

    def __init__(self, store: Store, source: Callable[[str], Source]) -> None:
        """`source` gives a registry by its name."""
        self._store = store
        self._source = source
        self._flights: SingleFlight[tuple[Documents, ...]] = SingleFlight()
        self._known: OrderedDict[tuple[Repository, Digest, frozenset[str | None]], tuple[Documents, ...]] = OrderedDict()

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def documents(self, repository: Repository, digest: Digest, platforms: Collection[str | None]) -> tuple[Documents, ...]:
        """Returns what is said of an image; of an index, of those of its platforms that are among `platforms`, `MOST_PLATFORMS` at most. Raises MirrorError."""
        if self._store.hosted.covers(repository):
            raise ManifestUnknown(f"{repository.path} lives in this mirror, and has no {digest} any more")
        key = repository, digest, frozenset(platforms)
        if (known := self._known.get(key)) is None:
            known, _ = await self._flights.do(key, lambda: self._read(repository, digest, key[2]))
            self._known[key] = known
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return known

    async def _read(self, repository: Repository, digest: Digest, platforms: frozenset[str | None]) -> tuple[Documents, ...]:
        try:
            async with asyncio.timeout(_PATIENCE):
                manifest = await self._manifest(repository, digest)
                if manifest.media_type not in INDEXES:
                    images: list[tuple[Manifest, str | None]] = [(manifest, None)]
                else:
                    wanted = [entry for entry in entries_of(manifest.body) if entry.platform in platforms][:MOST_PLATFORMS]
                    images = [(await self._manifest(repository, one.descriptor.digest), one.platform) for one in wanted]
                found = [
                    documents_of(image, await self._configuration(repository, image), platform) for image, platform in images
                ]
        except TimeoutError:
            raise UpstreamTimeout(f"{repository.registry} did not give the documents of {digest} in time") from None
        return tuple(one for one in found if one is not None)

    async def _manifest(self, repository: Repository, digest: Digest) -> Manifest:
        if (cached := await self._store.manifest(digest)) is not None:
            return cached
        return await self._source(repository.registry).get_manifest(repository, digest)

    async def _configuration(self, repository: Repository, image: Manifest) -> bytes:
        """Returns an image's configuration; empty if it has none, or one of more than `MAX_SIZE` bytes."""
        config, _ = blobs_of(image.body)
        if config is None or not 0 < config.size <= MAX_SIZE:
            return b""
        if (embedded := embedded_in(image.body, config.digest)) is not None:
            return embedded
        if self._store.size(config.digest) is not None:
            return await read_small(self._store, config.digest)
        reader = DirectReader(config.digest, self._source(repository.registry).blob(repository, config.digest), config.size)
        async with aclosing(reader), aclosing(reader.parts(0, config.size)) as parts:
            # Nothing is on a disk yet.
            return b"".join([part async for part in parts if isinstance(part, bytes)])
