"""Which repositories have which content: so that nobody gets, by way of a repository that does not have it, what another one holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from mirror.cache.own import Own
from mirror.cdn_loop import asking_the_registry_only
from mirror.errors import Denied, StorageUnreadable, Unknown, UpstreamError
from mirror.manifests import Descriptor, is_own
from mirror.names import Digest, Reference, Repository
from mirror.storage.store import Store
from mirror.tasks import SingleFlight

_MOST = 50_000
_MOST_MANIFESTS = 64
"""Cached manifests that are read for one digest."""


class _Blob(Protocol):
    async def describe(self) -> Descriptor: ...


class ContentSource(Protocol):
    """The upstream of one registry. Its methods raise MirrorError."""

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor: ...
    def blob(self, repository: Repository, digest: Digest) -> _Blob: ...
    def asks_mirror(self, repository: Repository, reference: Reference) -> bool: ...


class Possession:
    """Answers from what is cached, and asks upstream about the rest. What a repository has it keeps: content by digest does not change."""

    def __init__(self, store: Store, source: Callable[[str], ContentSource], own: Own) -> None:
        """`source` gives a registry by its name. What the repositories of `own` do not have, they do not answer with either: nobody need be asked."""
        self._own = own
        self._store = store
        self._source = source
        self._known: OrderedDict[tuple[Repository, Digest], None] = OrderedDict()
        self._asking: SingleFlight[bool] = SingleFlight()
        self.is_closed: Callable[[], bool] = lambda: False
        """Returns whether there is anything that not everybody may pull."""

    async def aclose(self) -> None:
        await self._asking.aclose()

    def is_known(self, repository: Repository, digest: Digest) -> bool:
        """True if it was seen before that the repository has this content."""
        return (repository, digest) in self._known or self._own.covers(repository)

    def note(self, repository: Repository, digest: Digest) -> None:
        """Notes that the registry of a repository has said that it has this content. The store notes it too, when it has the content."""
        self._remember(repository, digest)

    async def is_left_to_upstream(self, repository: Repository, digest: Digest) -> bool:
        """True if content must be asked of the repository's registry in any case, whose answer counts: a pull needs no other request."""
        if self.is_known(repository, digest) or self._is_here(digest):
            return False
        asks_mirror = self._source(repository.registry).asks_mirror(repository, digest)
        return not asks_mirror and await self._store.is_named(repository, digest)

    def _is_here(self, digest: Digest) -> bool:
        try:
            return self._store.hot_manifest(digest) is not None or self._store.size(digest) is not None
        except StorageUnreadable:
            return True

    async def has(self, repository: Repository, digest: Digest, is_manifest: bool) -> bool:
        """Like `ask`. While the registry cannot be asked, what it has checked counts. Raises UpstreamError."""
        try:
            return await self.ask(repository, digest, is_manifest)
        except UpstreamError:
            if await self._was_checked(repository, digest):
                return True
            raise

    async def _was_checked(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether a manifest that the registry of the repository gave names content that this registry has too: registries take a manifest only if they
        have what it names, but for layers that it says are elsewhere. That is less than the registry's own word, and enough while it cannot be asked."""
        if not any(holder.registry == repository.registry for holder in await self._store.told_holders(digest)):
            return False
        for name in (await self._store.naming(digest, 0.0))[:_MOST_MANIFESTS]:
            manifest = await self._store.manifest(name) if repository in await self._store.told_holders(name) else None
            if manifest is not None and is_own(manifest.body, digest):
                return True
        return False

    async def holders(self, digest: Digest) -> frozenset[Repository]:
        """The repositories that are known to have content."""
        found = await self._store.holders(digest)
        for repository in found:
            self._remember(repository, digest)
        return found

    async def proves(self, repository: Repository, manifest: Digest) -> bool:
        """Returns whether a manifest may be kept as one that a repository has, so that whoever may pull from that gets it: if its registry says so, by a tag too, or where everybody may pull
        everything. Raises UpstreamError if there is no answer."""
        if not self.is_closed() or self.is_known(repository, manifest) or repository in await self.holders(manifest):
            return True
        return await self.ask(repository, manifest, is_manifest=True)

    async def ask(self, repository: Repository, digest: Digest, is_manifest: bool) -> bool:
        """Asks upstream whether a repository has content. Raises UpstreamError if there is no answer."""
        found, _ = await self._asking.do((repository, digest), lambda: self._ask(repository, digest, is_manifest))
        if found:
            self._remember(repository, digest)
        return found

    async def _ask(self, repository: Repository, digest: Digest, is_manifest: bool) -> bool:
        source = self._source(repository.registry)
        try:
            # Another mirror answers for what it has cached, whichever repository that is from.
            with asking_the_registry_only():
                if is_manifest:
                    await source.head_manifest(repository, digest)
                else:
                    await source.blob(repository, digest).describe()
        except (Unknown, Denied):
            return False
        if is_manifest and (manifest := await self._store.manifest(digest)) is not None:
            await self._store.put_manifest(repository, manifest)
        elif not is_manifest:
            await self._store.note_holder(repository, [digest], told=True)
        return True

    def _remember(self, repository: Repository, digest: Digest) -> None:
        self._known[repository, digest] = None
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
