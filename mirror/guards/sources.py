"""Where the gate gets documents from that it has to read: configurations and signatures. None of it is for clients, so no rule is asked about it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol

from mirror.cache.configurations import read_cached_configuration, read_configuration, read_small
from mirror.cache.guarding import Archive
from mirror.cache.lists import known_referrers
from mirror.cache.own import Own
from mirror.downloads.flight import Progress
from mirror.errors import BlobUnknown, DigestInvalid, ManifestUnknown, MirrorError
from mirror.manifests import MAX_SIZE, Manifest, blobs_of
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.store import Store


class Documents(Protocol):
    """All methods but `cached` raise MirrorError; Unknown if there is no such thing."""

    async def cached(self, digest: Digest) -> Manifest | None:
        """Returns a manifest that is here; nobody is asked for others."""
        ...

    async def configuration(self, repository: Repository, manifest: Manifest, *, fetch: bool = True) -> bytes:
        """Returns an image's configuration; empty if it has none. Without `fetch`, nobody is asked for it, and it is empty if it is not here."""
        ...

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest: ...

    async def referrers(self, repository: Repository, digest: Digest) -> list[Digest]: ...

    async def blob(self, repository: Repository, digest: Digest) -> bytes:
        """Returns a blob of at most some megabytes."""
        ...


class FromUpstream:
    """Documents that are fetched if they are not cached."""

    def __init__(
        self,
        store: Store,
        fetch: Callable[[Repository, Digest], AsyncGenerator[Progress, None]],
        get: Callable[[Repository, Reference], Any],
        list_referrers: Callable[[Repository, Digest], Any],
    ) -> None:
        """`get` returns a manifest and its outcome, `list_referrers` descriptors and theirs."""
        self._store = store
        self._fetch = fetch
        self._get = get
        self._list_referrers = list_referrers

    async def cached(self, digest: Digest) -> Manifest | None:
        return await self._store.manifest(digest)

    async def configuration(self, repository: Repository, manifest: Manifest, *, fetch: bool = True) -> bytes:
        if not fetch:
            return await read_cached_configuration(self._store, manifest)
        return await read_configuration(self._store, self._fetch, repository, manifest)

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        found: Manifest = (await self._get(repository, reference))[0]
        return found

    async def referrers(self, repository: Repository, digest: Digest) -> list[Digest]:
        listed, _ = await self._list_referrers(repository, digest)
        return _digests(listed)

    async def blob(self, repository: Repository, digest: Digest) -> bytes:
        if self._store.size(digest) is None:
            async with aclosing(self._fetch(repository, digest)) as progress:
                async for now in progress:
                    if max(now.have, now.size or 0) > MAX_SIZE:
                        raise BlobUnknown(f"{digest} is larger than any signature")
        return await read_small(self._store, digest)


class FromCache:
    """Documents that are cached; others are unknown."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def cached(self, digest: Digest) -> Manifest | None:
        return await self._store.manifest(digest)

    async def configuration(self, repository: Repository, manifest: Manifest, *, fetch: bool = True) -> bytes:
        return await read_cached_configuration(self._store, manifest)

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        digest: Digest | None
        if isinstance(reference, Tag):
            record = await self._store.tag(repository, reference)
            digest = None if record is None else record.descriptor.digest
        else:
            digest = reference
        found = None if digest is None else await self._store.manifest(digest)
        if found is None:
            raise ManifestUnknown(f"{image_name(repository, reference)} is not cached")
        return found

    async def referrers(self, repository: Repository, digest: Digest) -> list[Digest]:
        if self._store.hosted.covers(repository):
            return _digests(await Own(self._store).referrers(repository, digest))
        return await known_referrers(self._store, repository, digest)

    async def blob(self, repository: Repository, digest: Digest) -> bytes:
        if self._store.size(digest) is None:
            raise BlobUnknown(f"{digest} is not cached")
        return await read_small(self._store, digest)


def _digests(descriptors: Iterable[dict[str, Any]]) -> list[Digest]:
    found = []
    for entry in descriptors:
        with contextlib.suppress(DigestInvalid):
            found.append(Digest.parse(str(entry.get("digest"))))
    return found


class WithArchive:
    """The documents of an archive, and others for what it does not have."""

    def __init__(self, others: Documents, archive: Archive) -> None:
        self._others = others
        self._archive = archive

    async def cached(self, digest: Digest) -> Manifest | None:
        return self._archive.manifest(digest) or await self._others.cached(digest)

    async def configuration(self, repository: Repository, manifest: Manifest, *, fetch: bool = True) -> bytes:
        config, _ = blobs_of(manifest.body)
        brought = None if config is None else self._archive.document(config.digest)
        return await self._others.configuration(repository, manifest, fetch=fetch) if brought is None else brought

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        digest = self._archive.meaning(repository, reference) if isinstance(reference, Tag) else reference
        brought = None if digest is None else self._archive.manifest(digest)
        return await self._others.manifest(repository, reference) if brought is None else brought

    async def referrers(self, repository: Repository, digest: Digest) -> list[Digest]:
        brought = self._archive.referrers(repository, digest)
        try:
            return [*brought, *await self._others.referrers(repository, digest)]
        except MirrorError:
            if not brought:
                raise
            return brought

    async def blob(self, repository: Repository, digest: Digest) -> bytes:
        brought = self._archive.document(digest)
        return await self._others.blob(repository, digest) if brought is None else brought
