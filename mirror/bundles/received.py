"""Enters the images of an archive into a store: their manifests, names and pins, once their blobs are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mirror.bundles.claims import Claim, Claims
from mirror.cache.guarding import Guard
from mirror.cache.lists import add_referrers
from mirror.cache.platforms import Selection
from mirror.errors import ManifestUnknown, MirrorError
from mirror.hosted.manifests import pushed_manifest
from mirror.manifests import Descriptor, Manifest, blobs_of, embedded_in, entries_of, is_elsewhere, platform_of
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.store import Store, TagRecord

_IMPORT = "mirror import"
"""Who pushed what comes from an archive."""
NAMELESS = "has no name in the archive: run it again with --as NAME"


@dataclass(frozen=True, slots=True)
class Received:
    """The result of importing one name of an archive. `fault` says why it is not served; empty if it is."""

    repository: Repository | None
    reference: Reference | None
    digest: Digest
    platforms: tuple[str, ...] = ()
    """The platforms that are cached completely."""
    came: int = 0
    """Bytes that were not cached before."""
    lacking: tuple[Digest, ...] = ()
    """What neither the archive nor the cache has."""
    rebuilt: bool = False
    fault: str = ""
    is_new_name: bool = False
    """True if the name did not stand for this image before, though its blobs may have been cached."""

    def __str__(self) -> str:
        return (
            f"an image {self.digest}"
            if self.repository is None or self.reference is None
            else image_name(self.repository, self.reference)
        )

    @property
    def state(self) -> str:
        """Returns a word or two for people."""
        if self.fault:
            return "incomplete" if self.lacking else "not imported"
        return "imported" if self.came or self.is_new_name else "already here"

    def document(self) -> dict[str, Any]:
        """Returns this as JSON."""
        return {
            "image": None if self.repository is None else str(self),
            "digest": str(self.digest),
            "platforms": list(self.platforms),
            "new": self.came,
            "new_name": self.is_new_name,
            "lacking": [str(digest) for digest in self.lacking],
            "rebuilt": self.rebuilt,
            "fault": self.fault or None,
        }


@dataclass
class _Parts:
    """The manifests of an image that are in the archive, or cached."""

    root: Manifest | None = None
    images: dict[Digest, Manifest] = field(default_factory=dict)
    indexes: dict[Digest, Manifest] = field(default_factory=dict)
    platforms: dict[Digest, str] = field(default_factory=dict)
    listed: set[Digest] = field(default_factory=set)
    """Blobs that its indexes list: those of a build cache."""
    fault: str = ""
    is_known: bool = False
    """True if all manifests of the wanted platforms are known."""

    def is_for_containers(self, digest: Digest) -> bool:
        return not self.platforms.get(digest, "unknown").startswith("unknown")

    def needed(self) -> set[Digest]:
        """Returns the configurations, layers and blobs of build caches."""
        return self.listed | {blob.digest for manifest in self.images.values() for blob in _blobs(manifest)}


async def _parts(claim: Claim, claims: Claims, platforms: Collection[str] | None, store: Store | None) -> _Parts:
    found = _Parts()

    async def known(digest: Digest) -> Manifest | None:
        manifest = claims.manifest(digest)
        return await store.manifest(digest) if manifest is None and store is not None else manifest

    async def manifest_of(digest: Digest) -> Manifest:
        manifest = await known(digest)
        if manifest is None:
            raise ManifestUnknown(f"{digest} is not in the archive")
        found.indexes[digest] = manifest
        return manifest

    async def config_of(manifest: Manifest) -> bytes:
        config, _ = blobs_of(manifest.body)
        return b"" if config is None else claims.documents.get(config.digest, b"")

    found.root = await known(claim.root)
    if found.root is None:
        return found
    name = image_name(*claim.names[0]) if claim.names else str(claim.root)
    selection = Selection(name, platforms, manifest_of, config_of)
    try:
        await selection.walk(found.root)
    except MirrorError as error:
        found.fault = error.message
    found.is_known = not found.fault and not selection.failures
    found.images, found.listed = selection.images, set(selection.blobs)
    found.indexes[claim.root] = found.root
    for index in found.indexes.values():
        for entry in entries_of(index.body):
            if entry.platform is not None:
                found.platforms.setdefault(entry.descriptor.digest, entry.platform)
    for digest, manifest in found.images.items():
        found.indexes.pop(digest, None)
        if digest not in found.platforms and (platform := platform_of(await config_of(manifest))) is not None:
            found.platforms[digest] = platform
    # A manifest that was read and is no index is for a platform that is not wanted.
    found.indexes = {digest: manifest for digest, manifest in found.indexes.items() if entries_of(manifest.body)}
    return found


def _blobs(manifest: Manifest) -> list[Descriptor]:
    """Returns what an image needs beside its manifest."""
    config, layers = blobs_of(manifest.body)
    return [
        blob
        for blob in [*([config] if config is not None else []), *layers]
        if not is_elsewhere(blob.media_type) and embedded_in(manifest.body, blob.digest) is None
    ]


async def required(claim: Claim, claims: Claims, platforms: Collection[str] | None) -> set[Digest]:
    """Returns the blobs that an image of the archive needs beside its manifests."""
    parts = await _parts(claim, claims, platforms, None)
    return parts.needed()


async def unwanted(found: Iterable[Claim], claims: Claims, platforms: Collection[str]) -> set[Digest]:
    """Returns the blobs that the archive's manifests name and no image for these platforms needs; none while a manifest that may need them is missing."""
    needed: set[Digest] = set()
    for claim in found:
        parts = await _parts(claim, claims, platforms, None)
        if not parts.is_known:
            return set()
        needed |= parts.needed()
    return claims.named_blobs() - needed


class Receiver:
    """Enters images, one after the other. `is_here` returns whether a blob is cached, `came` how many of its bytes this import wrote."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        is_here: Callable[[Digest], bool],
        came: Callable[[Digest], int],
        platforms: Collection[str] | None,
        *,
        pin: bool,
        dry_run: bool,
        guard: Guard | None = None,
    ) -> None:
        self._store = store
        self._claims = claims
        self._is_here = is_here
        self._came = came
        self._platforms = platforms
        self._pin = pin
        self._dry_run = dry_run
        self._guard = guard

    async def receive(self, found: Iterable[Claim]) -> list[Received]:
        """Enters each image of which at least one platform is cached completely."""
        return [one for claim in found for one in await self._receive(claim)]

    async def _receive(self, claim: Claim) -> list[Received]:
        parts = await _parts(claim, self._claims, self._platforms, self._store)
        lacking: dict[Digest, None] = {}
        if parts.root is None:
            lacking[claim.root] = None
        whole: dict[Digest, Manifest] = {}
        came = 0
        for digest, manifest in parts.images.items():
            blobs = {blob.digest for blob in _blobs(manifest)}
            came += sum(map(self._came, blobs))
            absent = [blob for blob in blobs if not self._is_here(blob)]
            lacking.update(dict.fromkeys(sorted(absent, key=str)))
            if not absent:
                whole[digest] = manifest
        came += sum(map(self._came, parts.listed))
        unlisted = [blob for blob in parts.listed if not self._is_here(blob)]
        lacking.update(dict.fromkeys(sorted(unlisted, key=str)))
        for_containers = [digest for digest in parts.images if parts.is_for_containers(digest)]
        some = bool(whole) or (bool(parts.listed) and not unlisted)
        served = some and (not for_containers or any(digest in whole for digest in for_containers))
        platforms = tuple(dict.fromkeys(parts.platforms[digest] for digest in for_containers if digest in whole))
        fault = parts.fault
        if not served and not fault:
            fault = (
                f"is not complete: {_listed(tuple(lacking))} missing" if lacking else "has nothing in the archive but an index"
            )
        if not claim.names:
            return [Received(None, None, claim.root, platforms, came, tuple(lacking), claim.rebuilt, fault or NAMELESS)]
        received = []
        was_here = await self._store.manifest(claim.root) is not None
        for repository, reference in claim.names:
            is_new = not was_here
            if isinstance(reference, Tag):
                record = await self._store.tag(repository, reference)
                is_new = record is None or record.descriptor.digest != claim.root
            refused = fault or self._refusal(repository, parts)
            if not refused and not self._dry_run:
                await self._enter(repository, reference, parts, whole)
            received.append(
                Received(repository, reference, claim.root, platforms, came, tuple(lacking), claim.rebuilt, refused, is_new)
            )
        return received

    def _refusal(self, repository: Repository, parts: _Parts) -> str:
        """Returns why a guard does not let an image in; empty if none objects."""
        if self._guard is None:
            return ""
        roots = [parts.root.digest] if parts.root is not None else []
        for digest in dict.fromkeys((*roots, *parts.indexes, *parts.images, *parts.needed())):
            if (error := self._guard.blocks(repository, digest)) is not None:
                return f"is refused: {error.message}"
        return ""

    async def _enter(self, repository: Repository, reference: Reference, parts: _Parts, whole: dict[Digest, Manifest]) -> None:
        hosted = self._store.hosted.covers(repository)
        for manifest in (*whole.values(), *parts.indexes.values()):
            if hosted:
                await host(self._store, repository, manifest)
            else:
                await self._store.put_manifest(repository, manifest)
        assert parts.root is not None
        if isinstance(reference, Tag) and hosted:
            await host(self._store, repository, parts.root, reference.value)
        elif isinstance(reference, Tag):
            await self._store.set_tag(repository, reference, TagRecord(parts.root.descriptor, time.time()))
        if self._pin:
            await self._store.pin(repository, reference)


async def host(store: Store, repository: Repository, manifest: Manifest, *tags: str) -> None:
    """Enters a manifest into a repository that lives here, with what is here of what it names: an archive may lack platforms. Raises MirrorError."""
    pushed = pushed_manifest(manifest.body, manifest.media_type, manifest.digest)
    for digest in pushed.children:
        await store.hosted.mount(repository, digest, _IMPORT)
    await store.hosted.put_manifest(repository, replace(pushed, needed=frozenset()), tags, _IMPORT)


async def enter_referrers(store: Store, referred: Iterable[tuple[Repository, Digest, dict[str, object]]]) -> None:
    """Stores the referrers of images as a list that upstream gave long ago, so that upstream is asked again when it can be."""
    for repository, subject, described in referred:
        digest = Digest.parse(str(described["digest"]))
        if store.size(digest) is None:
            continue
        if store.hosted.covers(repository):
            if (manifest := await store.manifest(digest)) is not None:
                await host(store, repository, manifest)
            continue
        await add_referrers(store, repository, subject, [described])


def _listed(digests: tuple[Digest, ...]) -> str:
    named = ", ".join(map(str, digests[:3]))
    return f"{named} is" if len(digests) == 1 else f"{named}{f' and {len(digests) - 3} more' if len(digests) > 3 else ''} are"
