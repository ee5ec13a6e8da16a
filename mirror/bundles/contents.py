"""Determines what a bundle holds: of each image its manifests for the chosen platforms, their configurations and layers, and what refers to them.

All of it comes from the store. Indexes keep all their entries, since their digest is their name, though the manifests of other platforms are left out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Container, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mirror.bundles.images import Contents, Image, Referrer
from mirror.cache.guarding import Guard, Guarded
from mirror.cache.lists import known_referrers
from mirror.cache.platforms import Selection, fits
from mirror.errors import ManifestUnknown, MirrorError, Unknown
from mirror.manifests import (
    COSIGN,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    MAX_SIZE,
    Descriptor,
    Manifest,
    attestations_in,
    blobs_of,
    embedded_in,
    entries_of,
    is_elsewhere,
    platform_of,
)
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.store import Store
from mirror.units import format_size

_Named = TypeVar("_Named", Image, Referrer)
_IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_DEEPEST = 4
"""Levels of what refers to what refers to an image."""
_SIDE_BY_SIDE = 16
_MOST_NAMED = 3
"""Missing digests that an error names."""
_MOST_BACK = 5
"""Images that a tag has meant before, and that are not cached, until it is given up to look for one."""


class Incomplete(Unknown):
    """An image is not cached, or not completely. `fact` is the message without the advice."""

    code = "MANIFEST_UNKNOWN"

    def __init__(self, fact: str, image: str) -> None:
        super().__init__(f"{fact}; pull it through the mirror first, or run `mirror pull {image}` beside it")
        self.fact = fact


@dataclass(slots=True)
class _Blobs:
    """What images consist of. Sizes in bytes."""

    manifests: dict[Digest, int | bytes] = field(default_factory=dict)
    configs: dict[Digest, int | bytes] = field(default_factory=dict)
    layers: dict[Digest, int | bytes] = field(default_factory=dict)
    missing: dict[Digest, int] = field(default_factory=dict)

    def update(self, other: _Blobs) -> None:
        self.manifests.update(other.manifests)
        self.configs.update(other.configs)
        self.layers.update(other.layers)
        self.missing.update(other.missing)


@dataclass(slots=True)
class _Found:
    """The manifests of one image that are cached and wanted."""

    root: Manifest
    indexes: dict[Digest, Manifest] = field(default_factory=dict)
    images: dict[Digest, Manifest] = field(default_factory=dict)
    platforms: dict[Digest, str] = field(default_factory=dict)
    listed: dict[Digest, int] = field(default_factory=dict)
    """Blobs that its indexes list: those of a build cache. Sizes in bytes."""
    absent: list[Digest] = field(default_factory=list)


class Gatherer:
    """Gathers images for `contents`."""

    def __init__(
        self,
        store: Store,
        platforms: Collection[str] | None,
        *,
        cached: bool = False,
        referrers: bool = True,
        guard: Guard | None = None,
        may_have: Callable[[Repository, Digest, bool], Awaitable[bool]] | None = None,
    ) -> None:
        """`may_have` returns whether content of a repository, a manifest if the last argument is True, may be in the bundle; None if all may. `platforms` such as ``linux/arm64``, None for all of them. With `cached`, missing content is no error: only the platforms that are cached completely are added."""
        self._store, self._hosted = store, store.hosted
        self._guard = guard
        self._may_have = may_have
        self._platforms = platforms
        self._cached = cached
        self._with_referrers = referrers
        self._images: list[Image] = []
        self._referrers: dict[tuple[Repository, Digest], Referrer] = {}
        self._blobs = _Blobs()
        self._tags: dict[Repository, list[str]] = {}
        self._parts: dict[Digest, tuple[Descriptor | None, list[Descriptor]]] = {}
        """The configurations and layers of manifests, which are needed several times."""

    async def add(self, repository: Repository, reference: Reference) -> None:
        """Adds an image. Raises Incomplete if it is not cached completely for each of the platforms; other MirrorErrors."""
        await self._add(repository, reference, await self._root(repository, reference))

    async def _add(self, repository: Repository, reference: Reference, root: Manifest | None) -> None:
        name = image_name(repository, reference)
        if isinstance(reference, Digest) and await self._lacks(repository, reference, True):
            root = None
        if self._guard is not None and root is not None and isinstance(reference, Tag):
            root = await self._allowed(self._guard, repository, reference, root)
        if root is None:
            raise Incomplete(f"{name} is not cached", name)
        if root.media_type in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED):
            raise ManifestUnknown(f"{name} is an image of before 2017 (schema 1), which no OCI layout can hold")
        found = await self._walk(repository, name, root)
        if self._guard is not None:
            for manifest in (root, *found.indexes.values(), *found.images.values()):
                if (error := (await self._guard.rule_digest(repository, manifest.digest, manifest)).error) is not None:
                    raise error
        blobs = _Blobs()
        for digest, manifest in list(found.images.items()):
            one = await self._blobs_of(repository, manifest)
            if one.missing and self._cached:
                del found.images[digest]
            else:
                blobs.update(one)
        listed = await self._listed_blobs(repository, found)
        if not listed.missing or not self._cached:
            blobs.update(listed)
        blobs.missing.update(dict.fromkeys(found.absent, 0))
        if (blobs.missing and not self._cached) or not (found.images or blobs.layers):
            raise Incomplete(_incomplete(name, blobs.missing), name)
        for digest, manifest in found.indexes.items():
            blobs.manifests[digest] = self._size(digest) or manifest.body
        self._blobs.update(blobs)
        ordered = sorted(found.images.values(), key=lambda manifest: self._rank(found.platforms.get(manifest.digest)))
        platforms = dict.fromkeys(
            found.platforms[manifest.digest]
            for manifest in ordered
            if manifest.digest in found.platforms and self._is_image(manifest)
        )
        docker = next((self._for_docker(manifest) for manifest in ordered if self._is_image(manifest)), None)
        size = blobs.manifests[root.digest]
        described = Descriptor(root.media_type, root.digest, size if isinstance(size, int) else len(size))
        self._images.append(Image(repository, reference, described, tuple(platforms), docker))
        if self._with_referrers:
            await self._add_attestations(repository, found)
            await self._add_referrers(repository, [*found.indexes, *found.images], _DEEPEST)

    async def _allowed(self, guard: Guard, repository: Repository, tag: Tag, root: Manifest) -> Manifest | None:
        """Returns what clients get by a tag; None if that is not cached. Raises Guarded."""
        lost: set[Digest] = set()
        while len(lost) < _MOST_BACK:
            ruling = await guard.rule_tag(repository, tag, root.descriptor, frozenset(lost))
            if ruling.error is not None or ruling.serve is None:
                if lost:
                    break
                raise ruling.error or AssertionError
            found = await self._store.manifest(ruling.serve.digest)
            if found is not None or ruling.held_until is None:
                return found
            lost.add(ruling.serve.digest)
        return None

    async def add_all(self, images: Iterable[tuple[Repository, Reference]]) -> list[tuple[Repository, Reference, MirrorError]]:
        """Adds images in their order, and reads several in parallel. Returns those that could not be added, with the reason."""
        slots = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def gather_one(repository: Repository, reference: Reference, root: Manifest | None) -> Gatherer | MirrorError:
            one = self._beside(self._platforms, cached=self._cached, referrers=self._with_referrers)
            one._tags = self._tags
            async with slots:
                try:
                    await one._add(repository, reference, root)
                except MirrorError as error:
                    return error
            one._parts.clear()
            return one

        named, failed = list(images), []
        # All in one call: a query costs less than passing it to the catalog's thread.
        roots = await self._store.manifests_of(named)
        gathering = [gather_one(*name, root) for name, root in zip(named, roots, strict=True)]
        for name, one in zip(named, await asyncio.gather(*gathering), strict=True):
            if isinstance(one, MirrorError):
                failed.append((*name, one))
                continue
            self._images += one._images
            self._blobs.update(one._blobs)
            for key, referrer in one._referrers.items():
                self._referrers.setdefault(key, referrer)
        return failed

    async def contents(self, have: Container[Digest] = ()) -> Contents:
        """Returns what a bundle of all added images holds. Layers that are in `have` are left out; manifests and configurations are small, and always included."""
        found = Contents(await self._dated(self._images), await self._dated(self._referrers.values()))
        found.blobs.update(self._blobs.manifests)
        found.blobs.update(self._blobs.configs)
        for digest, blob in self._blobs.layers.items():
            if digest in found.blobs:
                continue
            if digest in have:
                found.omitted[digest] = blob if isinstance(blob, int) else len(blob)
            else:
                found.blobs[digest] = blob
        return found

    async def _dated(self, named: Iterable[_Named]) -> list[_Named]:
        entries = list(named)
        asked = [(one.repository, one.reference, one.root.digest) if isinstance(one.reference, Tag) else None for one in entries]
        known = iter(await self._store.first_seen([tag for tag in asked if tag is not None]))
        return [replace(one, seen=next(known)) if tag is not None else one for one, tag in zip(entries, asked, strict=True)]

    async def _root(self, repository: Repository, reference: Reference) -> Manifest | None:
        if isinstance(reference, Tag):
            record = await self._store.tag(repository, reference)
            return await self._store.manifest(record.descriptor.digest) if record is not None else None
        return await self._store.manifest(reference)

    def _beside(self, platforms: Collection[str] | None, *, cached: bool, referrers: bool) -> Gatherer:
        return Gatherer(self._store, platforms, cached=cached, referrers=referrers, guard=self._guard, may_have=self._may_have)

    async def _lacks(self, repository: Repository, digest: Digest, is_manifest: bool = False) -> bool:
        """Returns whether a repository does not have something, which the store may have for others."""
        if self._hosted.covers(repository):
            return not await self._hosted.has(repository, digest)
        return self._may_have is not None and not await self._may_have(repository, digest, is_manifest)

    async def _walk(self, repository: Repository, name: str, root: Manifest) -> _Found:
        """Raises ManifestUnknown if the image is not for one of the platforms."""
        found = _Found(root)

        async def manifest_of(digest: Digest) -> Manifest:
            manifest = None if await self._lacks(repository, digest, True) else await self._store.manifest(digest)
            if manifest is None:
                found.absent.append(digest)
                raise ManifestUnknown(f"{digest} is not cached")
            found.indexes[digest] = manifest
            return manifest

        async def config_of(manifest: Manifest) -> bytes:
            config = await self._config(manifest)
            if (platform := platform_of(config)) is not None:
                found.platforms.setdefault(manifest.digest, platform)
            return config

        selection = Selection(name, self._platforms, manifest_of, config_of)
        await selection.walk(root)
        found.images, found.listed = selection.images, selection.blobs
        found.indexes = {
            digest: manifest
            for digest, manifest in {root.digest: root, **found.indexes}.items()
            if digest not in found.images and (digest == root.digest or entries_of(manifest.body))
        }
        for index in found.indexes.values():
            for entry in entries_of(index.body):
                if entry.platform is not None:
                    found.platforms.setdefault(entry.descriptor.digest, entry.platform)
        if root.digest in found.images and root.digest not in found.platforms:
            await config_of(root)
        if not selection.failures:
            found.absent.clear()
        return found

    async def _config(self, manifest: Manifest) -> bytes:
        """Returns an image's configuration; empty if it is not cached."""
        config, _ = self._parts_of(manifest)
        if config is None or not 0 < config.size <= MAX_SIZE:
            return b""
        if (embedded := embedded_in(manifest.body, config.digest)) is not None:
            return embedded
        reader = await self._store.open(config.digest)
        if reader is None:
            return b""
        async with aclosing(reader):
            parts = [part async for part in reader.parts(0, MAX_SIZE)]
            return b"".join(part if isinstance(part, bytes) else os.pread(part.fd, part.length, part.offset) for part in parts)

    async def _blobs_of(self, repository: Repository, manifest: Manifest) -> _Blobs:
        blobs = _Blobs()
        blobs.manifests[manifest.digest] = self._size(manifest.digest) or manifest.body
        config, layers = self._parts_of(manifest)
        for blob in [*([config] if config else []), *layers]:
            kind = blobs.configs if blob is config else blobs.layers
            size = None if await self._lacks(repository, blob.digest) else self._size(blob.digest)
            if size is not None:
                kind[blob.digest] = size
            elif (embedded := embedded_in(manifest.body, blob.digest)) is not None:
                kind[blob.digest] = embedded
            elif not is_elsewhere(blob.media_type):
                blobs.missing[blob.digest] = blob.size
        return blobs

    async def _listed_blobs(self, repository: Repository, found: _Found) -> _Blobs:
        blobs = _Blobs()
        for digest, size in found.listed.items():
            here = None if await self._lacks(repository, digest) else self._size(digest)
            if here is not None:
                blobs.layers[digest] = here
            else:
                blobs.missing[digest] = size
        return blobs

    def _parts_of(self, manifest: Manifest) -> tuple[Descriptor | None, list[Descriptor]]:
        if (found := self._parts.get(manifest.digest)) is None:
            found = self._parts[manifest.digest] = blobs_of(manifest.body)
        return found

    def _is_image(self, manifest: Manifest) -> bool:
        """Returns whether this is a container image, not a chart, a signature, an attestation or a build cache."""
        config, layers = self._parts_of(manifest)
        return config is not None and config.media_type in _IMAGE_CONFIGS and all("tar" in layer.media_type for layer in layers)

    def _for_docker(self, manifest: Manifest) -> tuple[Digest, tuple[Digest, ...]] | None:
        config, layers = self._parts_of(manifest)
        return None if config is None else (config.digest, tuple(layer.digest for layer in layers))

    def _size(self, digest: Digest) -> int | None:
        return self._store.size(digest)

    async def _add_attestations(self, repository: Repository, found: _Found) -> None:
        """Adds the entries of its indexes that attest its images, if they are cached completely. They have no platform by which they could be selected."""
        for index in found.indexes.values():
            for digest, subject in attestations_in(index.body):
                if subject in found.images and digest not in found.images and not await self._lacks(repository, digest, True):
                    manifest = await self._store.manifest(digest)
                    if manifest is not None and not (blobs := await self._blobs_of(repository, manifest)).missing:
                        self._blobs.update(blobs)

    async def _add_referrers(self, repository: Repository, subjects: Iterable[Digest], levels: int) -> None:
        """Adds the cached manifests that refer to some manifests, and those that refer to these."""
        for subject in subjects:
            references: list[Reference] = [
                Tag(tag)
                for end in COSIGN
                if (tag := f"{subject.algorithm}-{subject.hex}{end}") in await self._known_tags(repository)
            ]
            references += await known_referrers(self._store, repository, subject)
            for reference in references:
                root = await self._root(repository, reference)
                if root is None or (repository, root.digest) in self._referrers:
                    continue
                found = await self._beside(None, cached=True, referrers=False)._whole(repository, reference)
                if found is not None:
                    self._blobs.update(found)
                    descriptor = Descriptor(root.media_type, root.digest, self._size(root.digest) or len(root.body))
                    self._referrers[repository, root.digest] = Referrer(repository, reference, descriptor, subject)
                    if levels > 1:
                        await self._add_referrers(repository, [root.digest], levels - 1)

    async def _whole(self, repository: Repository, reference: Reference) -> _Blobs | None:
        """Returns the blobs of one image; None if some of it is not cached."""
        try:
            await self.add(repository, reference)
        except (Unknown, Guarded):
            return None
        return self._blobs

    async def _known_tags(self, repository: Repository) -> list[str]:
        if repository not in self._tags:
            self._tags[repository] = [tag for tag in await self._store.tags(repository) if tag.endswith(COSIGN)]
        return self._tags[repository]

    def _rank(self, platform: str | None) -> int:
        """Returns the place of an image among those of other platforms: in the order of the request; without one, linux/amd64 comes first."""
        wanted = list(self._platforms or ("linux/amd64",))
        return next((number for number, one in enumerate(wanted) if fits(platform, one)), len(wanted))


def _incomplete(name: str, missing: dict[Digest, int]) -> str:
    size = sum(missing.values())
    some = ", ".join(map(str, [*missing][:_MOST_NAMED]))
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    lacks = (
        f"{len(missing)} of its blobs and manifests ({format_size(size)}) are missing: {some}{more}"
        if missing
        else "none of its platforms is"
    )
    return f"{name} is not cached whole; {lacks}"
