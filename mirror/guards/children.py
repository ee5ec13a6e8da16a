"""Reads the images that an index names, as far as clients here get them, so that it is decided on the index by what they are.

Those whose manifests are cached are read, and of the others those for the platforms that clients have pulled here, and for this machine's: a client asks for them
next, so most often nothing is fetched that it would not fetch. Images for other platforms cost requests that registries limit. They are read once a client asks
for one. Attestations, which are for the platform ``unknown/unknown``, are passed over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from mirror.cache.platforms import fits
from mirror.errors import MirrorError
from mirror.guards.sources import Documents
from mirror.manifests import MEDIA_TYPES, Descriptor, Entry, Manifest, entries_of, this_platform
from mirror.names import Digest, Repository

log = logging.getLogger(__name__)

_MOST_LISTED = 2000
"""Images that are looked for in the cache."""
_MOST_READ = 64
"""Images of an index that are looked at; real ones have a dozen."""
_MOST_FETCHED = 8
"""Images of an index that are fetched to decide on it."""
_DEEPEST = 2
"""Levels of indexes below an index."""
_PATIENCE = 10.0
"""Seconds in which the documents of an image must come: what takes longer is not waited for, and a client that asks for it joins."""
_AGAIN = 300.0
"""Seconds before documents that could not be had are asked for again."""
_MOST_KEPT = 10_000
_MOST_PLATFORMS = 32
"""Platforms for which clients have pulled lately: what an index says of its images is anybody's word."""
_ATTESTATION = "unknown/unknown"


@dataclass(frozen=True, slots=True)
class Child:
    """An image that an index names, and for which platform; None if the index does not say it. `configuration` is empty if there is none, or it was not asked for."""

    manifest: Manifest
    platform: str | None
    configuration: bytes


class Children:
    """Reads what indexes name. It remembers for which platforms clients pull, and what could not be had."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._pulled: OrderedDict[str, None] = OrderedDict()
        self._failed: OrderedDict[tuple[Repository, Digest], float] = OrderedDict()

    def beside(self, documents: Documents) -> Children:
        """Returns one that reads other documents, and remembers with this one."""
        other = Children(documents)
        other._pulled, other._failed = self._pulled, self._failed
        return other

    async def read(self, repository: Repository, root: Manifest, *, configurations: bool) -> tuple[list[Child], float]:
        """Returns the images of an index, with their configurations if these are asked for; and for how many seconds that counts, infinite if all of them could be had."""
        return await self._walk(repository, root, configurations, whole=False)

    async def fetch_whole(self, repository: Repository, digest: Digest) -> bool:
        """Fetches a manifest, and those that it names for any platform. Returns False if some could not be had."""
        root, again = await self._read(repository, Entry(Descriptor("", digest, 0), None), False)
        if root is not None and entries_of(root.manifest.body):
            _, again = await self._walk(repository, root.manifest, False, whole=True)
        return again == math.inf

    async def _walk(
        self, repository: Repository, root: Manifest, configurations: bool, *, whole: bool
    ) -> tuple[list[Child], float]:
        found: dict[Digest, Child] = {}
        again = math.inf
        level = [Child(root, None, b"")]
        for _ in range(_DEEPEST + 1):
            wanted = await self._wanted(level, found, whole=whole)
            level = []
            for child, seconds in await asyncio.gather(*(self._read(repository, entry, configurations) for entry in wanted)):
                again = min(again, seconds)
                if child is not None and entries_of(child.manifest.body):
                    level.append(child)
                elif child is not None:
                    found[child.manifest.digest] = child
            if not level:
                break
        return list(found.values()), again

    async def _wanted(self, indexes: Iterable[Child], found: dict[Digest, Child], *, whole: bool) -> list[Entry]:
        # Some list an image for several platforms: it is read once, as one for the first of them.
        listed: dict[Digest, Entry] = {}
        for index in indexes:
            for entry in entries_of(index.manifest.body):
                one = Entry(entry.descriptor, entry.platform or index.platform)
                if (
                    one.platform != _ATTESTATION
                    and one.descriptor.media_type in MEDIA_TYPES
                    and one.descriptor.digest not in found
                ):
                    listed.setdefault(one.descriptor.digest, one)
        here: list[Entry] = []
        others: list[Entry] = []
        for one in list(listed.values())[:_MOST_LISTED]:
            (others if await self._documents.cached(one.descriptor.digest) is None else here).append(one)
        here = here[:_MOST_READ]
        if whole:
            return [*here, *others][:_MOST_READ]
        for platform in dict.fromkeys(one.platform for one in here if one.platform is not None):
            self._pulled[platform] = None
            self._pulled.move_to_end(platform)
        while len(self._pulled) > _MOST_PLATFORMS:
            self._pulled.popitem(last=False)
        platforms = {*self._pulled, this_platform()}
        wanted = [one for one in others if one.platform is None or any(fits(one.platform, other) for other in platforms)]
        # Where none is for a platform that is known here, a client has another one.
        return [*here, *(wanted if here or wanted else others)[:_MOST_FETCHED]]

    async def _read(self, repository: Repository, entry: Entry, configuration: bool) -> tuple[Child | None, float]:
        """Returns an image, None if it cannot be had; and after how many seconds it is asked for again, infinite if it is here whole."""
        digest = entry.descriptor.digest
        key = repository, digest
        manifest = await self._documents.cached(digest)
        wait = self._failed.get(key, -math.inf) + _AGAIN - time.monotonic()
        content = b""
        try:
            if wait > 0:
                if manifest is not None and configuration:
                    content = await self._documents.configuration(repository, manifest, fetch=False)
            else:
                wait = math.inf
                async with asyncio.timeout(_PATIENCE):
                    manifest = manifest or await self._documents.manifest(repository, digest)
                    if configuration:
                        content = await self._documents.configuration(repository, manifest)
        except (MirrorError, TimeoutError) as error:
            log.info("%s@%s cannot be read to decide on the index that names it: %s", repository, digest, error or "no answer")
            self._failed[key] = time.monotonic()
            self._failed.move_to_end(key)
            if len(self._failed) > _MOST_KEPT:
                self._failed.popitem(last=False)
            wait = _AGAIN
        return (None if manifest is None else Child(manifest, entry.platform, content)), wait
