"""The places of content: which other mirrors are asked for it before its registry, in which order.

The mirrors of a fleet are ranked for each digest, and for each tag, by rendezvous hashing (Thaler and Ravishankar, 1998): each computes the same order from the same list, and where one mirror
is added or lost, only its part of the content moves. The first is the content's *home*: it alone asks the registry. Each mirror asks those that rank before itself, so whoever is first
of those that live acts as the home. Parents come after the fleet's own mirrors.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from mirror.cdn_loop import passed
from mirror.errors import MirrorError, Offline, Unknown, UpstreamError, UpstreamLimited
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository
from mirror.tasks import close_all
from mirror.upstream.places import Place
from mirror.upstream.proxies import Fixed
from mirror.upstream.rates import Limiter
from mirror.upstream.transport import Transport
from mirror.upstream.trust import trusting

log = logging.getLogger(__name__)

_T = TypeVar("_T")

Asking = Callable[[Digest], contextlib.AbstractContextManager[None]]
"""What is entered while a blob is asked of another mirror of the fleet; see `mirror.storage.store.Store.asking_peer`."""


class FleetSettings(Protocol):
    """The settings that are used here (mirror/config/fleet.py)."""

    @property
    def mirrors(self) -> Sequence[str]: ...
    @property
    def own(self) -> str | None: ...
    @property
    def parents(self) -> Sequence[str]: ...
    @property
    def ca_file(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def has_token(self) -> bool: ...
    def token(self) -> str | None: ...


class Fleet:
    """The other mirrors that this one asks."""

    def __init__(self, settings: FleetSettings, transport: Transport) -> None:
        tls = trusting(settings.ca_file) if settings.ca_file is not None else None
        # What comes from within the fleet has passed a cap already where one of it is the registry's client.
        uncapped = Limiter()

        def place(url: str, *, is_peer: bool) -> Place:
            return Place(
                url,
                settings.name,
                transport,
                settings.token,
                is_peer=is_peer,
                tls=tls,
                way=Fixed(None) if is_peer else None,
                limiter=uncapped if is_peer else transport.limiter,
            )

        self._own = settings.own
        self._peers = {url: place(url, is_peer=True) for url in settings.mirrors if url != settings.own}
        self._parents = {url: place(url, is_peer=False) for url in settings.parents}
        self._mirrors = tuple(settings.mirrors)
        self.asking_peer: Asking = lambda digest: contextlib.nullcontext()

    async def aclose(self) -> None:
        await close_all(*(place.aclose for place in self.all))

    @property
    def all(self) -> list[Place]:
        """All other mirrors, in the order of the settings."""
        return [*self._peers.values(), *self._parents.values()]

    def places(self, repository: Repository, reference: Reference) -> list[Place]:
        """Returns whom the request that the current task works for may be asked of before the registry, in order."""
        request = passed()
        if request.registry_only:
            return []
        key = str(reference) if isinstance(reference, Digest) else f"{repository}:{reference}"
        found = []
        if not request.by_peer:
            for url in ranked(self._mirrors, key):
                if url == self._own:
                    break
                found.append(self._peers[url])
        return found + [self._parents[url] for url in ranked(tuple(self._parents), key)]

    def asks_peer(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether another mirror of the fleet is asked first."""
        return any(place.is_peer and place.alive for place in self.places(repository, reference))

    def asks_mirror(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether any other mirror may be asked first."""
        return bool(self.places(repository, reference))

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor | None:
        """Returns what a reference points to, by the word of the first place that has one; None if the registry has to be asked. Raises ManifestUnknown, UpstreamLimited, Offline."""
        return await first_answer(self.places(repository, reference), lambda place: place.head_manifest(repository, reference))

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest | None:
        """Returns a manifest of the first place that gives it, as `head_manifest` does."""
        return await first_answer(self.places(repository, reference), lambda place: place.get_manifest(repository, reference))


async def first_answer(places: Sequence[Place], ask: Callable[[Place], Awaitable[_T]]) -> _T | None:
    """Returns the answer of the first place that lives and has one; None if none has. Raises Unknown, UpstreamLimited, Offline, which are answers too."""
    for place in places:
        if not place.alive:
            continue
        try:
            return await ask(place)
        except MirrorError as error:
            if is_answer(error):
                raise
            log.info("another one is asked than %s: %s", place.name, error)
    return None


def is_answer(error: MirrorError) -> bool:
    """Returns whether an error of a place is what the registry says, or the mirror's own decision, so that nobody else is asked."""
    return isinstance(error, Unknown | UpstreamLimited | Offline) or not isinstance(error, UpstreamError)


def ranked(urls: Sequence[str], key: str) -> list[str]:
    """Returns mirrors in their order for one content: the one with the highest hash first."""
    return sorted(urls, key=lambda url: hashlib.sha256(f"{url} {key}".encode()).digest(), reverse=True)
