"""Caches lists from upstream: the tags of a repository, the referrers of a manifest. A list is fresh for `ttl`, and served stale if upstream fails."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mirror.cache.freshness import is_fresh
from mirror.cache.guarding import Guard
from mirror.cache.outcome import HIT, PARTIAL, STALE, Outcome, miss
from mirror.cache.own import Own
from mirror.errors import DigestInvalid, MirrorError, Unknown
from mirror.names import Digest, Repository
from mirror.storage.store import Store
from mirror.tasks import SingleFlight

log = logging.getLogger(__name__)


class Listing(Protocol):
    """A list from upstream; not `complete` if only a part of it was received."""

    @property
    def entries(self) -> list[Any]: ...
    @property
    def complete(self) -> bool: ...


class ListSource(Protocol):
    """The upstream of one registry. Its methods raise MirrorError."""

    async def list_tags(self, repository: Repository) -> Listing: ...
    async def list_referrers(self, repository: Repository, digest: Digest) -> Listing: ...


class Lists:
    """Returns lists from the cache while they are fresh, else from upstream."""

    def __init__(
        self,
        store: Store,
        source: Callable[[str], ListSource],
        ttl: float,
        clock: Callable[[], float] = time.time,
        offline: Callable[[], bool] = lambda: False,
        own: Own | None = None,
    ) -> None:
        """`ttl` in seconds; `source` gives a registry by its name. While `offline`, lists are made of what is cached. `own` has the repositories that live here."""
        self.guard: Guard | None = None
        self._offline = offline
        self._own = own or Own(store)
        self._store = store
        self._source = source
        self._ttl = ttl
        self._clock = clock
        self._asking: SingleFlight[Listing] = SingleFlight()

    async def aclose(self) -> None:
        await self._asking.aclose()

    async def tags(self, repository: Repository, after: str = "", count: int | None = None) -> tuple[list[str], Outcome]:
        """Returns all tags in ASCII order ("lexical order", distribution-spec 1.1, "Listing Tags"). Of a repository that lives here, only those after a tag, and
        `count` of them at most. Raises MirrorError."""
        if self._own.covers(repository):
            return await self._store.hosted.tags(repository, after, count), HIT
        if self._offline() and (cached := await self._store.tags(repository)):
            # The tags that can be pulled: others that upstream listed once are of no use.
            return sorted(set(cached)), PARTIAL
        try:
            found, outcome = await self._list(
                _tags_key(repository), lambda: self._source(repository.registry).list_tags(repository)
            )
        except MirrorError as error:
            if isinstance(error, Unknown) and error.certain:
                raise
            # The tags that clients have pulled are better than none, but are marked as partial.
            found, outcome = await self._store.tags(repository), PARTIAL
            if not found:
                raise
        return sorted(set(found)), outcome

    async def last_tags(self, repository: Repository) -> list[str]:
        """Returns the tags that upstream listed last, or else those that are cached, without asking."""
        if self._own.covers(repository):
            return await self._store.hosted.tags(repository)
        known = await self._store.document(_tags_key(repository))
        return known["list"] if known is not None else await self._store.tags(repository)

    async def referrers(
        self, repository: Repository, digest: Digest, *, anew: bool = False
    ) -> tuple[list[dict[str, Any]], Outcome]:
        """Returns the descriptors of a manifest's referrers, without those that are blocked; `anew` by upstream's word of now, if it can be had. Raises MirrorError."""
        found, outcome = await self.all_referrers(repository, digest, anew=anew)
        return [entry for entry in found if not self._is_blocked(repository, entry)], outcome

    def _is_blocked(self, repository: Repository, entry: dict[str, Any]) -> bool:
        if self.guard is None:
            return False
        try:
            return self.guard.blocks(repository, Digest.parse(str(entry.get("digest")))) is not None
        except DigestInvalid:
            return False

    async def all_referrers(
        self, repository: Repository, digest: Digest, *, anew: bool = False
    ) -> tuple[list[dict[str, Any]], Outcome]:
        """Like `referrers`, with those that are blocked."""
        if self._own.covers(repository):
            return await self._own.referrers(repository, digest), HIT
        if self._offline():
            known = await self._store.document(_referrers_key(repository, digest))
            # A manifest without known referrers has an empty list (distribution-spec 1.1, "Listing Referrers").
            return (known["list"], HIT) if known is not None else ([], PARTIAL)
        return await self._list(
            _referrers_key(repository, digest),
            lambda: self._source(repository.registry).list_referrers(repository, digest),
            anew=anew,
        )

    async def _list(self, key: str, ask: Callable[[], Awaitable[Listing]], *, anew: bool = False) -> tuple[list[Any], Outcome]:
        known = await self._store.document(key)
        if known is not None and not anew and is_fresh(known["asked"], self._ttl, self._clock()):
            return known["list"], HIT
        try:
            found, joined = await self._asking.do(key, lambda: self._ask(key, ask))
        except MirrorError as error:
            if known is None or (isinstance(error, Unknown) and error.certain):
                raise
            log.info("serving a stale list (%s): %s", key, error, extra={"cause": str(error)})
            return known["list"], STALE
        if not found.complete:
            missing = [entry for entry in known["list"] if entry not in found.entries] if known is not None else []
            return found.entries + missing, PARTIAL
        return found.entries, miss(joined)

    async def _ask(self, key: str, ask: Callable[[], Awaitable[Listing]]) -> Listing:
        found = await ask()
        if found.complete:
            await self._store.set_document(key, {"asked": self._clock(), "list": found.entries})
        return found


async def known_referrers(store: Store, repository: Repository, digest: Digest) -> list[Digest]:
    """What referred to a manifest when upstream last listed that; upstream is not asked."""
    known = await store.document(_referrers_key(repository, digest))
    found = []
    for entry in known["list"] if known is not None else ():
        with contextlib.suppress(DigestInvalid, KeyError, TypeError):
            found.append(Digest.parse(entry["digest"]))
    return found


async def add_referrers(store: Store, repository: Repository, digest: Digest, entries: list[dict[str, Any]]) -> None:
    """Adds descriptors to what is known to refer to a manifest. Upstream's own list keeps its age, and without one, upstream is asked as soon as it can be."""
    key = _referrers_key(repository, digest)
    known = await store.document(key) or {"asked": 0.0, "list": []}
    here = {entry.get("digest") for entry in known["list"] if isinstance(entry, dict)}
    new = [entry for entry in entries if entry["digest"] not in here]
    await store.set_document(key, {"asked": known["asked"], "list": [*known["list"], *new]})


def _tags_key(repository: Repository) -> str:
    return f"tags {repository}"


def _referrers_key(repository: Repository, digest: Digest) -> str:
    return f"referrers {repository} {digest}"
