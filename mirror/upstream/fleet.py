"""The places of content: which other mirrors are asked for it before its registry, in which order.

The mirrors of a fleet are ranked for each digest, and for each tag, by rendezvous hashing (Thaler and Ravishankar, 1998): each computes the same order from the same list, and where one mirror
is added or lost, only its part of the content moves. The first is the content's *home*: it alone asks the registry. Each mirror asks those that rank before itself, so whoever is first
of those that live acts as the home. Parents come after the fleet's own mirrors, and a bucket after these.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mirror.cdn_loop import passed
from mirror.errors import MirrorError, Offline, Unknown, UpstreamError, UpstreamLimited
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.tasks import close_all
from mirror.upstream.places import NotThere, Place
from mirror.upstream.proxies import Fixed
from mirror.upstream.rates import Limiter
from mirror.upstream.transport import Transport
from mirror.upstream.trust import trusting

if TYPE_CHECKING:
    from mirror.upstream.bucket import Bucket

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_P = TypeVar("_P", bound="Place | Bucket")

Noting = Callable[[Repository | None, Reference], Awaitable[None]]
"""What is told of content, or with a repository of a tag, that comes from outside of the fleet; see `mirror.storage.outbox.Outbox.note_fetched`."""
Asking = Callable[[Digest], contextlib.AbstractContextManager[None]]
"""What is entered while a blob is asked of another mirror of the fleet; see `mirror.storage.store.Store.asking_peer`."""


class ParentSettings(Protocol):
    """The settings of a parent that are used here."""

    @property
    def url(self) -> str: ...
    def token(self) -> str | None: ...


class FleetSettings(Protocol):
    """The settings that are used here (mirror/config/fleet.py)."""

    @property
    def mirrors(self) -> Sequence[str]: ...
    @property
    def own(self) -> str | None: ...
    @property
    def parents(self) -> Sequence[ParentSettings]: ...
    @property
    def bucket(self) -> str | None: ...
    @property
    def bucket_endpoint(self) -> str | None: ...
    @property
    def ca_file(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def has_token(self) -> bool: ...
    def token(self) -> str | None: ...


class Fleet:
    """The other mirrors that this one asks, and the bucket."""

    def __init__(self, settings: FleetSettings, transport: Transport, tag_ttl: float) -> None:
        """`tag_ttl`: for how many seconds what a tag means counts, from when its registry was asked. Raises OSError if the environment names a proxy that cannot be used."""
        tls = trusting(settings.ca_file) if settings.ca_file is not None else None
        # What comes from within the fleet has passed a cap already where one of it is the registry's client.
        uncapped = Limiter()

        def place(url: str, token: Callable[[], str | None], *, is_peer: bool) -> Place:
            return Place(
                url,
                settings.name,
                transport,
                token,
                is_peer=is_peer,
                tls=tls,
                way=Fixed(None) if is_peer else None,
                limiter=uncapped if is_peer else transport.limiter,
            )

        self._own = settings.own
        self._peers = {url: place(url, settings.token, is_peer=True) for url in settings.mirrors if url != settings.own}
        # Another fleet's: the token of this one is none of its business, since who has it may change this fleet.
        self._parents = {parent.url: place(parent.url, parent.token, is_peer=False) for parent in settings.parents}
        self.bucket: Bucket | None = None
        if settings.bucket is not None:
            from mirror.upstream.bucket import Bucket
            from mirror.upstream.objects import Objects

            objects = Objects(settings.bucket, settings.bucket_endpoint, settings.ca_file)
            self.bucket = Bucket(objects, transport, tls)
        self._tag_ttl = tag_ttl
        self._mirrors = tuple(settings.mirrors)
        self.asking_peer: Asking = lambda digest: contextlib.nullcontext()
        self.on_fetched: Noting | None = None
        """Told before it is kept; None where there is no bucket."""

    async def aclose(self) -> None:
        await close_all(*(place.aclose for place in self.all), *(() if self.bucket is None else (self.bucket.aclose,)))

    @property
    def all(self) -> list[Place]:
        """All other mirrors, in the order of the settings."""
        return [*self._peers.values(), *self._parents.values()]

    async def note_fetched(self, repository: Repository, *references: Reference) -> None:
        """Call this before content, or what a tag means, is kept that came from outside of the fleet: this mirror writes it to the bucket then, also where it is not its home."""
        if self.on_fetched is None or not self._mirrors:
            return
        # A manifest that was asked for by its digest has no other name.
        for reference in dict.fromkeys(references):
            tag = reference if isinstance(reference, Tag) else None
            key = str(reference) if tag is None else name_of(repository, tag)
            if ranked(self._mirrors, key)[0] != self._own:
                await self.on_fetched(None if tag is None else repository, reference)

    def places(self, repository: Repository, digest: Digest) -> list[Place | Bucket]:
        """Returns whom the request that the current task works for may be asked of before the registry, in order."""
        found: list[Place | Bucket] = [*self._mirrors_for(repository, digest)]
        if self.bucket is not None and not passed().registry_only:
            found.append(self.bucket)
        return found

    def is_home(self, digest: Digest | None, name: str = "") -> bool:
        """Returns whether this mirror, of those of the fleet that live, is the first for content, or else for the tag `name`."""
        for url in ranked(self._mirrors, name if digest is None else str(digest)):
            if url == self._own:
                return True
            if self._peers[url].alive:
                return False
        return True

    def _mirrors_for(self, repository: Repository, reference: Reference) -> list[Place]:
        request = passed()
        if request.registry_only:
            return []
        key = str(reference) if isinstance(reference, Digest) else name_of(repository, reference)
        found = []
        if not request.by_peer:
            for url in ranked(self._mirrors, key):
                if url == self._own:
                    break
                found.append(self._peers[url])
        return found + [self._parents[url] for url in ranked(tuple(self._parents), key)]

    def asks_peer(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether another mirror of the fleet is asked first."""
        return any(place.is_peer and place.alive for place in self._mirrors_for(repository, reference))

    def asks_mirror(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether any other mirror, or the bucket, may be asked first."""
        return bool(self._mirrors_for(repository, reference)) or (self.bucket is not None and not passed().registry_only)

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor | None:
        """Returns what a reference points to, by the word of the first place that has one; None if the registry has to be asked. Raises ManifestUnknown, UpstreamLimited, Offline."""
        if isinstance(reference, Digest):
            return await first_answer(
                self.places(repository, reference), lambda place: place.head_manifest(repository, reference)
            )
        found = await first_answer(
            self._mirrors_for(repository, reference), lambda place: place.head_manifest(repository, reference)
        )
        if found is not None and found.endpoint in self._parents:
            await self.note_fetched(repository, reference)
        return found

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest | None:
        """Returns a manifest of the first place that gives it, as `head_manifest` does."""
        if isinstance(reference, Digest):
            found = await first_answer(
                self.places(repository, reference), lambda place: place.get_manifest(repository, reference)
            )
        else:
            found = await first_answer(
                self._mirrors_for(repository, reference), lambda place: place.get_manifest(repository, reference)
            )
        if found is not None and found.endpoint in self._parents:
            await self.note_fetched(repository, reference, found.digest)
        return found

    async def kept_tag(self, repository: Repository, tag: Tag, *, fresh: bool) -> Descriptor | None:
        """Returns what a tag meant as the bucket knows, if that is `fresh`, or else whenever it was; None if it does not know. Raises Offline."""
        if self.bucket is None or passed().registry_only:
            return None
        bucket = self.bucket
        found = await first_answer([bucket], lambda place: bucket.get_tag(repository, tag))
        return None if found is None or (fresh and found.age >= self._tag_ttl) else found

    async def kept_image(self, repository: Repository, tag: Tag) -> Descriptor | None:
        """Returns what a tag means as the bucket knows, if that is fresh and the bucket has its manifest, too: the registry may have it no longer. Raises Offline."""
        found = await self.kept_tag(repository, tag, fresh=True)
        if found is None or (bucket := self.bucket) is None:
            return None
        digest = found.digest
        kept = await first_answer([bucket], lambda place: bucket.get_manifest(repository, digest))
        return None if kept is None else found


def name_of(repository: Repository, tag: Tag) -> str:
    """Returns by what name mirrors are ranked for a tag."""
    return f"{repository}:{tag}"


async def first_answer(places: Sequence[_P], ask: Callable[[_P], Awaitable[_T]]) -> _T | None:
    """Returns the answer of the first place that lives and has one; None if none has. Raises Unknown, UpstreamLimited, Offline, which are answers too."""
    for place in places:
        if not place.alive:
            continue
        try:
            return await ask(place)
        except MirrorError as error:
            if is_answer(error):
                raise
            # Most of what is asked for the first time.
            level = logging.DEBUG if isinstance(error, NotThere) else logging.INFO
            log.log(level, "another one is asked than %s: %s", place.name, error)
    return None


def is_answer(error: MirrorError) -> bool:
    """Returns whether an error of a place is what the registry says, or the mirror's own decision, so that nobody else is asked."""
    return isinstance(error, Unknown | UpstreamLimited | Offline) or not isinstance(error, UpstreamError)


def ranked(urls: Sequence[str], key: str) -> list[str]:
    """Returns mirrors in their order for one content: the one with the highest hash first."""
    return sorted(urls, key=lambda url: hashlib.sha256(f"{url} {key}".encode()).digest(), reverse=True)
