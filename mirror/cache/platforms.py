"""Selects the images of an index for some platforms, or for all. An index may list other indexes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from mirror.errors import ManifestUnknown, MirrorError, Unknown, UpstreamInvalid
from mirror.manifests import INDEXES, MEDIA_TYPES, Entry, Manifest, entries_of, platform_of
from mirror.names import Digest

_DEEPEST = 8
"""Levels of nested indexes; no real image has more."""
_MOST_MANIFESTS = 2000
"""Manifests that an image may list, at all levels."""
_PARALLEL = 6
"""Manifests that are fetched in parallel."""
_BLOBS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.", "application/vnd.buildkit.cacheconfig.")
"""Beginnings of the media types of blobs in an index: BuildKit's registry cache lists layers and a configuration where other indexes list manifests."""
_MOST_NAMED = 5
"""Missing manifests that an error names."""

_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}
"""The variant that containerd assumes if none is given ("platforms.Normalize")."""


def fits(platform: str | None, wanted: str) -> bool:
    """Returns whether an index's entry is for a platform. ``linux/arm64`` means ``linux/arm64/v8``; a `wanted` platform without a variant matches all variants."""
    if platform is None:
        return False
    given, asked = platform.split("/"), wanted.split("/")
    if given[:2] != asked[:2]:
        return False
    default = _DEFAULT_VARIANTS.get(asked[1], "")
    return len(asked) == 2 or [*given, default][2] == [*asked, default][2]


def runs_on(platform: str, wanted: str) -> bool:
    """Returns whether an image's configuration is for a platform. The variant is ignored, since many builders leave it out."""
    return platform.split("/")[:2] == wanted.split("/")[:2]


class Selection:
    """The images of `name` that are for the wanted platforms; `walk` finds them."""

    def __init__(
        self,
        name: str,
        platforms: Collection[str] | None,
        manifest_of: Callable[[Digest], Awaitable[Manifest]],
        config_of: Callable[[Manifest], Awaitable[bytes]],
    ) -> None:
        """`platforms` are such as ``linux/arm64``, None for all. `config_of` returns an image's configuration, empty if there is none."""
        self.blobs: dict[Digest, int] = {}
        """The blobs that indexes list, with their sizes in bytes: those of BuildKit's registry caches."""
        self._artifacts: dict[Digest, Manifest] = {}
        """Manifests below an index that are for no platform."""
        self.images: dict[Digest, Manifest] = {}
        self.indexes: dict[Digest, Manifest] = {}
        """The indexes that led to them."""
        self.failures: list[MirrorError] = []
        """Why `images` is not complete."""
        self._name = name
        self._platforms = platforms
        self._manifest_of = manifest_of
        self._config_of = config_of
        self._offered: set[str] = set()
        self._met: set[str] = set()
        self._seen: set[Digest] = set()
        self._absent: list[Entry] = []
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def walk(self, root: Manifest) -> None:
        """Finds the images. Raises ManifestUnknown if there is none for one of the platforms."""
        if not _is_index(root):
            if await self._is_wanted(root, None, True):
                self.images[root.digest] = root
        else:
            await self._descend(root)
            if not self._met and not self._offered - {"unknown/unknown"} and (self._artifacts or self.blobs):
                # Nothing in it is for a platform: charts, models, a build cache. All of it was meant.
                self.images |= self._artifacts
                self._met.update(self._platforms or ())
        unmet = [platform for platform in self._platforms or () if platform not in self._met]
        absent = [entry for entry in self._absent if entry.platform or unmet or self._platforms is None]
        if absent:
            named = ", ".join(
                f"{entry.descriptor.digest}{f' ({entry.platform})' if entry.platform else ''}" for entry in absent[:_MOST_NAMED]
            )
            more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
            missing = "1 manifest" if len(absent) == 1 else f"{len(absent)} manifests"
            self.failures.insert(0, ManifestUnknown(f"upstream lacks {missing} that {self._name} lists: {named}{more}"))
        elif unmet and not self.failures:
            known = ", ".join(sorted(self._offered - {"unknown/unknown"}))
            raise ManifestUnknown(f"{self._name} is not for {', '.join(unmet)}, but for {known or 'unknown platforms'}")

    async def _descend(self, root: Manifest) -> None:
        level: list[tuple[Manifest, str | None]] = [(root, None)]
        for _ in range(_DEEPEST):
            entries: list[Entry] = []
            for manifest, platform in level:
                if _is_index(manifest):
                    self.indexes[manifest.digest] = manifest
                    entries += self._wanted(manifest, platform)
                elif await self._is_wanted(manifest, platform, False):
                    self.images[manifest.digest] = manifest
            if not entries:
                return
            if len(self._seen) > _MOST_MANIFESTS:
                self.failures.append(UpstreamInvalid(f"{self._name} lists more than {_MOST_MANIFESTS} manifests"))
                return
            found = await asyncio.gather(*(self._fetch(entry) for entry in entries))
            level = [(manifest, entry.platform) for manifest, entry in zip(found, entries, strict=True) if manifest is not None]
        self.failures.append(UpstreamInvalid(f"{self._name} nests indexes more than {_DEEPEST} deep"))

    def _wanted(self, index: Manifest, inherited: str | None) -> list[Entry]:
        """Returns the entries of an index to fetch: those for a wanted platform, and those that name none."""
        wanted = []
        for entry in entries_of(index.body):
            if entry.descriptor.media_type.startswith(_BLOBS):
                self.blobs[entry.descriptor.digest] = entry.descriptor.size
                continue
            platform = entry.platform or inherited
            if platform is not None:
                self._offered.add(platform)
                met = {one for one in self._platforms or () if fits(platform, one)}
                self._met |= met
                if self._platforms is not None and not met:
                    continue
            if entry.descriptor.digest not in self._seen:
                self._seen.add(entry.descriptor.digest)
                wanted.append(Entry(entry.descriptor, platform))
        return wanted

    async def _is_wanted(self, image: Manifest, platform: str | None, is_root: bool) -> bool:
        if self._platforms is None or platform is not None:
            return True
        actual = platform_of(await self._config_of(image))
        if actual is None:
            # Not for any platform (a chart, a signature): wanted only if it was requested by name.
            if is_root:
                self._met.update(self._platforms)
            else:
                self._artifacts[image.digest] = image
            return is_root
        self._offered.add(actual)
        met = {one for one in self._platforms if runs_on(actual, one)}
        self._met |= met
        return bool(met)

    async def _fetch(self, entry: Entry) -> Manifest | None:
        async with self._slots:
            try:
                return await self._manifest_of(entry.descriptor.digest)
            except Unknown:
                self._absent.append(entry)
            except MirrorError as error:
                self.failures.append(error)
        return None


def _is_index(manifest: Manifest) -> bool:
    return manifest.media_type in INDEXES or (manifest.media_type not in MEDIA_TYPES and bool(entries_of(manifest.body)))
