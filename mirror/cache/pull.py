"""Fetches whole images into the cache before clients request them.

It fetches all that a client needs for a pull without upstream: the manifest that the tag points to, the manifests of an index for the wanted platforms, and their
configurations and layers. Attestations, which an index lists and neither dockerd nor containerd requests, are fetched with all platforms only. What refers to an
image is fetched by attached.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

from mirror.cache.configurations import Fetch, read_configuration
from mirror.cache.embedded import find_embedded
from mirror.cache.platforms import Selection
from mirror.cache.tags import Tags
from mirror.errors import Denied, MirrorError, Unknown, UpstreamError
from mirror.manifests import Manifest, attestations_in, blobs_of
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.store import Store

log = logging.getLogger(__name__)

_IMAGES = 4
_BLOBS = 6
"""In parallel; each blob may use several connections."""
_ELSEWHERE = ("foreign", "nondistributable")
"""In media types of layers that registries need not have: clients fetch them from the URLs in the manifest (image-spec 1.1, "layer.md")."""


@dataclass
class Arrival:
    """A blob that pulls of one command have in common. `before` is how many bytes were cached when the first pull began."""

    before: int
    counted: bool = False
    """True once one of the pulls has counted its bytes."""


@dataclass
class Pull:
    """The pull of one image, and its progress. Sizes in bytes."""

    repository: Repository
    reference: Reference
    platforms: Collection[str] | None = None
    """Such as ``linux/arm64``; None for all that an index lists."""
    total: int = 0
    """The size of its configurations and layers, as far as they are known."""
    here: int = 0
    """How much of `total` is cached."""
    fetched: int = 0
    """How much was downloaded since the pull began, for this pull or for clients; a blob that images of one command share counts once."""
    blobs: dict[Digest, int] = field(default_factory=dict)
    """Its configurations and layers, with their sizes."""
    arrivals: dict[Digest, Arrival] = field(default_factory=dict)
    embedded: set[Digest] = field(default_factory=set)
    """Blobs that upstream lacks, but that a manifest embeds ("data" in a descriptor)."""
    digest: Digest | None = None
    """Of its index, or of its only manifest; None until that is cached."""
    subjects: list[Digest] = field(default_factory=list)
    """Its indexes and manifests: what something may refer to."""
    attestations: list[Digest] = field(default_factory=list)
    """Manifests by which its indexes attest others of its manifests."""
    unchecked: str = ""
    """Why the tag could not be checked with upstream, so that the pull uses what is cached; empty if it was checked."""

    def __str__(self) -> str:
        return image_name(self.repository, self.reference)


class Pulls:
    """Fetches images, several in parallel."""

    def __init__(self, store: Store, manifests: Tags, fetch: Fetch) -> None:
        self._store = store
        self._manifests = manifests
        self._fetch = fetch
        self._images = asyncio.Semaphore(_IMAGES)
        self._blobs = asyncio.Semaphore(_BLOBS)
        self._arrivals: WeakValueDictionary[Digest, Arrival] = WeakValueDictionary()

    async def pull(self, this: Pull) -> None:
        """Fetches what is missing of an image, and updates `this`. If some of it fails, it raises MirrorError after the rest is fetched."""
        async with self._images:
            manifest = await self._resolve(this)
            chosen = Selection(
                str(this), this.platforms, partial(self._manifest, this.repository), partial(self._read_config, this)
            )
            await chosen.walk(manifest)
            this.digest = manifest.digest
            this.subjects = list(dict.fromkeys([manifest.digest, *chosen.indexes, *chosen.images]))
            this.attestations = [
                digest
                for index in chosen.indexes.values()
                for digest, subject in attestations_in(index.body)
                if subject in chosen.images and digest not in chosen.images
            ]
            for image in chosen.images.values():
                config, layers = blobs_of(image.body)
                for blob in (*([config] if config else []), *layers):
                    if not any(word in blob.media_type for word in _ELSEWHERE):
                        this.blobs[blob.digest] = blob.size
            this.blobs.update(chosen.blobs)
            for digest in this.blobs:
                self._note(this, digest)
            this.total = sum(this.blobs.values())
            work = [self._blob(this, digest, size) for digest, size in this.blobs.items()]
            failed = [failure for failure in await asyncio.gather(*work, return_exceptions=True) if failure is not None]
        for failure in (*chosen.failures, *failed):
            raise failure

    async def why_missing(self, this: Pull) -> str:
        """Returns why some of its blobs are not cached, though they were fetched: there was no room for them, or they were evicted since. Empty if all are."""
        missing = sum(self._store.size(digest) is None for digest in this.blobs.keys() - this.embedded)
        kept = f"{missing} of its blobs {'is' if missing == 1 else 'are'} not kept"
        return f"{kept}: {await self._store.shortage()}" if missing else ""

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
        """Records how much of a blob is cached before it is fetched, so that bytes that come later count as fetched."""
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
            log.info("cannot read how much of %s is cached: %s", digest, error)
            return 0

    async def _manifest(self, repository: Repository, digest: Digest) -> Manifest:
        manifest, _ = await self._manifests.get(repository, digest)
        return manifest

    async def _read_config(self, this: Pull, image: Manifest) -> bytes:
        """Returns an image's configuration, fetched if it is not cached; empty if there is none or it cannot be fetched."""
        try:
            return await read_configuration(
                self._store, self._fetch, this.repository, image, lambda digest: self._note(this, digest)
            )
        except MirrorError as error:
            # Raised again when the blobs are fetched.
            log.info("%s: no configuration of %s: %s", this, image.digest, error)
            return b""

    async def _blob(self, this: Pull, digest: Digest, size: int) -> None:
        async with self._blobs:
            seen = 0
            if self._store.size(digest) is None:
                try:
                    async with aclosing(self._fetch(this.repository, digest)) as updates:
                        async for progress in updates:
                            this.here += progress.have - seen
                            seen = progress.have
                except (Unknown, Denied, UpstreamError):
                    if await find_embedded(self._store, this.repository, digest) is None:
                        raise
                    this.embedded.add(digest)
            arrival = this.arrivals[digest]
            # A blob of several images was fetched once.
            if not arrival.counted and (came := (self._store.size(digest) or 0) - arrival.before) > 0:
                arrival.counted = True
                this.fetched += came
            this.here += size - seen
