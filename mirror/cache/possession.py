"""Which repositories have which content: so that nobody gets, by way of a repository that does not have it, what another one holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from mirror.cache.own import Own
from mirror.cdn_loop import asking_the_registry_only
from mirror.errors import Denied, Unknown
from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository
from mirror.storage.store import Store
from mirror.tasks import SingleFlight

_MOST = 50_000


class _Blob(Protocol):
    async def describe(self) -> Descriptor: ...


class ContentSource(Protocol):
    """The upstream of one registry. Its methods raise MirrorError."""

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor: ...
    def blob(self, repository: Repository, digest: Digest) -> _Blob: ...


class Possession:
    """Answers from what is cached, and asks upstream about the rest. What a repository has it keeps: content by digest does not change."""

    def __init__(self, store: Store, source: Callable[[str], ContentSource], own: Own) -> None:
        """`source` gives a registry by its name. What the repositories of `own` do not have, they do not answer with either: nobody need be asked."""
        self._own = own
        self._store = store
        self._source = source
        self._known: OrderedDict[tuple[Repository, Digest], None] = OrderedDict()
        self._asking: SingleFlight[bool] = SingleFlight()

    async def aclose(self) -> None:
        await self._asking.aclose()

    def is_known(self, repository: Repository, digest: Digest) -> bool:
        """True if it was seen before that the repository has this content."""
        return (repository, digest) in self._known or self._own.covers(repository)

    async def holders(self, digest: Digest) -> frozenset[Repository]:
        """The repositories that are known to have content: a cached manifest of theirs is it, or names it."""
        found = await self._store.holders(digest)
        for repository in found:
            self._remember(repository, digest)
        return found

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
            # What the manifest names is the repository's too.
            await self._store.put_manifest(repository, manifest)
        return True

    def _remember(self, repository: Repository, digest: Digest) -> None:
        self._known[repository, digest] = None
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
