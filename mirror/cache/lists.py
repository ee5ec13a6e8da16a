"""Lists that upstream gives: the tags of a repository, the referrers of a manifest. Fresh for the tags' `ttl`; stale when upstream cannot be asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mirror.cache.outcome import HIT, STALE, Outcome, miss
from mirror.errors import MirrorError, Unknown
from mirror.names import Digest, Repository
from mirror.storage.store import Store
from mirror.tasks import SingleFlight

log = logging.getLogger(__name__)


class ListSource(Protocol):
    """What is asked of upstream here. Raises MirrorError."""

    async def list_tags(self, repository: Repository) -> list[str]: ...
    async def list_referrers(self, repository: Repository, digest: Digest) -> list[dict[str, Any]]: ...


class Lists:
    """Answers that are lists."""

    def __init__(
        self, store: Store, source: Callable[[str], ListSource], ttl: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._source = source
        self._ttl = ttl
        self._clock = clock
        self._asking: SingleFlight[list[Any]] = SingleFlight()

    async def aclose(self) -> None:
        await self._asking.aclose()

    async def tags(self, repository: Repository) -> tuple[list[str], Outcome]:
        """All tags, in ASCII order ("lexical order", distribution-spec 1.1, "Listing Tags"). Raises MirrorError."""
        try:
            found, outcome = await self._list(
                f"tags {repository}", lambda: self._source(repository.registry).list_tags(repository)
            )
        except Unknown:
            raise
        except MirrorError:
            # Better those that have come by here than none.
            found, outcome = await self._store.tags(repository), STALE
            if not found:
                raise
        return sorted(set(found)), outcome

    async def referrers(self, repository: Repository, digest: Digest) -> tuple[list[dict[str, Any]], Outcome]:
        """Descriptors of what refers to a manifest. Raises MirrorError."""
        return await self._list(
            f"referrers {repository} {digest}", lambda: self._source(repository.registry).list_referrers(repository, digest)
        )

    async def _list(self, key: str, ask: Callable[[], Awaitable[list[Any]]]) -> tuple[list[Any], Outcome]:
        known = await self._store.document(key)
        if known is not None and 0 <= self._clock() - known["asked"] < self._ttl:
            return known["list"], HIT
        try:
            found, joined = await self._asking.do(key, lambda: self._ask(key, ask))
        except Unknown:
            raise
        except MirrorError as error:
            if known is None:
                raise
            log.info("serving a stale list (%s): %s", key, error)
            return known["list"], STALE
        return found, miss(joined)

    async def _ask(self, key: str, ask: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        found = await ask()
        await self._store.set_document(key, {"asked": self._clock(), "list": found})
        return found
