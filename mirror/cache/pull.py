"""Whole images into the cache before anybody asks for them.

What a client needs that pulls with no upstream is fetched: the manifest that the tag means, of an index those for the wanted platforms, and their configurations
and layers. Neither dockerd nor containerd asks for the attestations that an index lists, nor for what refers to an image: they come with all platforms only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

from mirror.cache.embedded import find_embedded
from mirror.cache.platforms import Selection
from mirror.cache.tags import Tags
from mirror.downloads.flight import Progress
from mirror.errors import Denied, MirrorError, Unknown, UpstreamError
from mirror.manifests import MAX_SIZE, Manifest, blobs_of, embedded_in
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.store import Store

log = logging.getLogger(__name__)

_IMAGES = 4
_BLOBS = 6
"""Side by side; each may have several connections."""
_LOOK = 0.1
"""Seconds between two looks at how far a download is."""
_ELSEWHERE = ("foreign", "nondistributable")
"""In media types of layers that registries do not have: clients fetch them from URLs that the manifest names (image-spec 1.1, "layer.md")."""


@dataclass
class Arrival:
    """A blob that some pulls of one command wait for. `before` is how many bytes were here when the first of them began."""

    before: int
    counted: bool = False
    """True once one of them has counted what came."""


@dataclass
class Pull:
    """One image to be pulled, and how far that is. Sizes in bytes."""

    repository: Repository
    reference: Reference
    platforms: Collection[str] | None = None
    """Such as ``linux/arm64``; None for everything that an index lists."""
    total: int = 0
    """Of its configurations and layers, as far as they are known."""
    here: int = 0
    fetched: int = 0
    """What has come of it since the pull began, whoever brought it; what several images of one command share counts once."""
    blobs: dict[Digest, int] = field(default_factory=dict)
    """All of them, with their sizes."""
    arrivals: dict[Digest, Arrival] = field(default_factory=dict)
    embedded: set[Digest] = field(default_factory=set)
    """Blobs that upstream does not give, but that a manifest embeds."""
    unchecked: str = ""
    """Why the tag is taken for what it meant last; empty where upstream has told."""

    def __str__(self) -> str:
        return image_name(self.repository, self.reference)


class Pulls:
    """Fetches images, some side by side."""

    def __init__(
        self, store: Store, manifests: Tags, fetch: Callable[[Repository, Digest], AsyncGenerator[Progress, None]]
    ) -> None:
        """`fetch` gets a blob into the cache, and tells meanwhile how far it is."""
        self._store = store
        self._manifests = manifests
        self._fetch = fetch
        self._images = asyncio.Semaphore(_IMAGES)
        self._blobs = asyncio.Semaphore(_BLOBS)
        self._arrivals: WeakValueDictionary[Digest, Arrival] = WeakValueDictionary()

    async def pull(self, this: Pull) -> None:
        """Fetches what is missing of an image; `this` tells how far it is meanwhile. Raises MirrorError, once the rest of it is here."""
        async with self._images:
            manifest = await self._resolve(this)
            chosen = Selection(
                str(this), this.platforms, partial(self._manifest, this.repository), partial(self._read_config, this)
            )
            await chosen.walk(manifest)
            for image in chosen.images.values():
                config, layers = blobs_of(image.body)
                for blob in (*([config] if config else []), *layers):
                    if not any(word in blob.media_type for word in _ELSEWHERE):
                        this.blobs[blob.digest] = blob.size
            for digest in this.blobs:
                self._note(this, digest)
            this.total = sum(this.blobs.values())
            work = [self._blob(this, digest, size) for digest, size in this.blobs.items()]
            failed = [failure for failure in await asyncio.gather(*work, return_exceptions=True) if failure is not None]
        for failure in (*chosen.failures, *failed):
            raise failure

    def missing(self, this: Pull) -> int:
        """How many of its blobs are not in the cache: there was no room for them, or they had to make room since."""
        return sum(self._store.size(digest) is None for digest in this.blobs.keys() - this.embedded)

    async def _resolve(self, this: Pull) -> Manifest:
        if isinstance(this.reference, Tag):
            try:
                await self._manifests.refresh(this.repository, this.reference)
            except UpstreamError as error:
                log.info("%s cannot be checked: %s", this, error)
                this.unchecked = error.message
        manifest, _ = await self._manifests.get(this.repository, this.reference)
        return manifest

    def _note(self, this: Pull, digest: Digest) -> None:
        """Notes how much of a blob is here before anything is fetched: what comes from now on counts as fetched, whoever brings it."""
        arrival = self._arrivals.get(digest)
        if arrival is None:
            size = self._store.size(digest)
            arrival = self._arrivals[digest] = Arrival(self._partly(digest) if size is None else size)
        this.arrivals[digest] = arrival

    def _partly(self, digest: Digest) -> int:
        try:
            with closing(self._store.partial(digest)) as here:
                here.follow()
                return here.have.total
        except OSError as error:
            log.info("what is here of %s cannot be told: %s", digest, error)
            return 0

    async def _manifest(self, repository: Repository, digest: Digest) -> Manifest:
        manifest, _ = await self._manifests.get(repository, digest)
        return manifest

    async def _read_config(self, this: Pull, image: Manifest) -> bytes:
        """An image's configuration, fetched where it is not here; empty where there is none that can be had."""
        config, _ = blobs_of(image.body)
        if config is None or not 0 < config.size <= MAX_SIZE:
            return b""
        if (embedded := embedded_in(image.body, config.digest)) is not None:
            return embedded
        try:
            if self._store.size(config.digest) is None:
                self._note(this, config.digest)
                async with aclosing(self._fetch(this.repository, config.digest)) as looks:
                    async for _ in looks:
                        pass
            reader = await self._store.open(config.digest)
        except MirrorError as error:
            # Told when the blobs are fetched.
            log.info("%s: no configuration %s: %s", this, config.digest, error)
            return b""
        if reader is None:
            return b""
        async with aclosing(reader):
            parts = [part async for part in reader.parts(0, MAX_SIZE)]
            return b"".join(part if isinstance(part, bytes) else os.pread(part.fd, part.length, part.offset) for part in parts)

    async def _blob(self, this: Pull, digest: Digest, size: int) -> None:
        async with self._blobs:
            seen = 0
            if self._store.size(digest) is None:
                try:
                    async with aclosing(self._fetch(this.repository, digest)) as looks:
                        async for progress in looks:
                            this.here += progress.have - seen
                            seen = progress.have
                except (Unknown, Denied, UpstreamError):
                    if await find_embedded(self._store, digest) is None:
                        raise
                    this.embedded.add(digest)
            arrival = this.arrivals[digest]
            # Several images have it: it was fetched once.
            if not arrival.counted and (came := (self._store.size(digest) or 0) - arrival.before) > 0:
                arrival.counted = True
                this.fetched += came
            this.here += size - seen
