"""What an image of an archive consists of: its manifests for the wanted platforms, and the blobs that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mirror.bundles.claims import Claim, Claims
from mirror.cache.platforms import Selection
from mirror.errors import ManifestUnknown, MirrorError
from mirror.manifests import Descriptor, Manifest, blobs_of, embedded_in, entries_of, is_elsewhere, platform_of
from mirror.names import Digest, image_name
from mirror.storage.store import Store


@dataclass
class Parts:
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
        return self.listed | {blob.digest for manifest in self.images.values() for blob in needed_blobs(manifest)}


async def parts_of(claim: Claim, claims: Claims, platforms: Collection[str] | None, store: Store | None) -> Parts:
    """Returns the manifests of an image for some platforms, None for all of them. Without a `store`, those that are in the archive."""
    found = Parts()

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


def needed_blobs(manifest: Manifest) -> list[Descriptor]:
    """Returns what an image needs beside its manifest."""
    config, layers = blobs_of(manifest.body)
    return [
        blob
        for blob in [*([config] if config is not None else []), *layers]
        if not is_elsewhere(blob.media_type) and embedded_in(manifest.body, blob.digest) is None
    ]


async def required(claim: Claim, claims: Claims, platforms: Collection[str] | None) -> set[Digest]:
    """Returns the blobs that an image of the archive needs beside its manifests."""
    parts = await parts_of(claim, claims, platforms, None)
    return parts.needed()


async def unwanted(found: Iterable[Claim], claims: Claims, platforms: Collection[str]) -> set[Digest]:
    """Returns the blobs that the archive's manifests name and no image for these platforms needs; none while a manifest that may need them is missing."""
    needed: set[Digest] = set()
    for claim in found:
        parts = await parts_of(claim, claims, platforms, None)
        if not parts.is_known:
            return set()
        needed |= parts.needed()
    return claims.named_blobs() - needed
