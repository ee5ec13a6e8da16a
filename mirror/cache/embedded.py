"""Content that a cached manifest carries in a descriptor's ``data`` (image-spec 1.1, "Embedded Content").

A registry need not have it, since whoever embeds content may not push it as well. It is served when the registry does not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from mirror.manifests import embedded_in
from mirror.names import Digest, Repository
from mirror.storage.slices import Part
from mirror.storage.store import Store

_MOST_MANIFESTS = 64
"""Cached manifests that are searched for one digest: thousands may name a base layer."""


async def find_embedded(store: Store, repository: Repository, digest: Digest) -> bytes | None:
    """Returns the content of `digest` from a cached manifest of a repository that embeds it, verified; None if none does."""
    for name in (await store.naming(digest, 0.0))[:_MOST_MANIFESTS]:
        manifest = await store.manifest(name) if repository in await store.holders(name) else None
        if manifest is not None and (data := embedded_in(manifest.body, digest)) is not None:
            return data
    return None


class EmbeddedReader:
    """Reads content that is in memory."""

    def __init__(self, data: bytes) -> None:
        self.size: int | None = len(data)
        self._data = data

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        if data := self._data[start:stop]:
            yield data

    async def aclose(self) -> None:
        pass
