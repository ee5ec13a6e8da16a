"""Whole images into the cache before anybody asks for them.

What a client needs that pulls with no upstream is fetched: the manifest that the tag means, of an index those for the wanted platforms, and their configurations
and layers. Neither dockerd nor containerd asks for the attestations that an index lists, nor for what refers to an image: they come with all platforms only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field

from mirror.cache.tags import Tags
from mirror.downloads.flight import Progress
from mirror.errors import ManifestUnknown, UpstreamError
from mirror.manifests import INDEXES, Manifest, blobs_of, entries_of
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

_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}
"""What containerd takes for the variant where none is told ("platforms.Normalize")."""


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
    """What this pull has brought of it: the rest was here, or others brought it."""
    blobs: dict[Digest, int] = field(default_factory=dict)
    """All of them, with their sizes."""
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
        self._counted: set[Digest] = set()

    async def pull(self, this: Pull) -> None:
        """Fetches what is missing of an image; `this` tells how far it is meanwhile. Raises MirrorError, once the rest of it is here."""
        async with self._images:
            manifest = await self._resolve(this)
            for chosen in await self._choose(this, manifest):
                config, layers = blobs_of(chosen.body)
                for blob in (*([config] if config else []), *layers):
                    if not any(word in blob.media_type for word in _ELSEWHERE):
                        this.blobs[blob.digest] = blob.size
            this.total = sum(this.blobs.values())
            work = [self._blob(this, digest, size) for digest, size in this.blobs.items()]
            failures = await asyncio.gather(*work, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    def missing(self, this: Pull) -> int:
        """How many of its blobs are not in the cache; perhaps no longer, where it is too small for all that was pulled."""
        return sum(self._store.size(digest) is None for digest in this.blobs)

    async def _resolve(self, this: Pull) -> Manifest:
        if isinstance(this.reference, Tag):
            try:
                await self._manifests.refresh(this.repository, this.reference)
            except UpstreamError as error:
                log.info("%s cannot be checked: %s", this, error)
                this.unchecked = error.message
        manifest, _ = await self._manifests.get(this.repository, this.reference)
        return manifest

    async def _choose(self, this: Pull, manifest: Manifest) -> list[Manifest]:
        """The manifests of single images that are wanted of it."""
        if manifest.media_type not in INDEXES:
            return [manifest]
        entries = entries_of(manifest.body)
        for platform in this.platforms or ():
            if not any(fits(entry.platform, platform) for entry in entries):
                known = ", ".join(sorted({entry.platform for entry in entries if entry.platform} - {"unknown/unknown"}))
                raise ManifestUnknown(f"{this} is not for {platform}, but for {known or 'platforms that are not told'}")
        wanted = [
            entry for entry in entries if this.platforms is None or any(fits(entry.platform, one) for one in this.platforms)
        ]
        found = []
        for digest in dict.fromkeys(entry.descriptor.digest for entry in wanted):
            below, _ = await self._manifests.get(this.repository, digest)
            found.append(below)
        return found

    async def _blob(self, this: Pull, digest: Digest, size: int) -> None:
        async with self._blobs:
            seen = 0
            if self._store.size(digest) is None:
                first: int | None = None
                async with aclosing(self._fetch(this.repository, digest)) as looks:
                    async for progress in looks:
                        first = progress.have if first is None else first
                        this.here += progress.have - seen
                        seen = progress.have
                if digest not in self._counted:
                    # Several images have it: it was fetched once.
                    self._counted.add(digest)
                    this.fetched += size - (first or 0)
            this.here += size - seen


def fits(platform: str | None, wanted: str) -> bool:
    """True where an index's entry is for a platform; ``linux/arm64`` is ``linux/arm64/v8``, and one without a variant is for all of its variants."""
    if platform is None:
        return False
    given, asked = platform.split("/"), wanted.split("/")
    if given[:2] != asked[:2]:
        return False
    default = _DEFAULT_VARIANTS.get(asked[1], "")
    return len(asked) == 2 or [*given, default][2] == [*asked, default][2]
