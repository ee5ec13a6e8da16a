"""Removes images that have not been used for longer than `cache.expire` allows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from mirror.names import Digest
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.eviction import Eviction
from mirror.storage.settings import Expire
from mirror.storage.store import Gone

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 3600.0
_SPENT = 30 * 86400.0
"""Seconds without use after which a manifest is removed if nothing that it names is cached. Each is small, but they add up."""


class Expiry:
    """Finds and removes expired images. Nothing expires while the mirror is offline: it could not be fetched again."""

    def __init__(
        self, catalog: CatalogExecutor, eviction: Eviction, rules: tuple[Expire, ...], offline: Callable[[], bool]
    ) -> None:
        self._catalog = catalog
        self._eviction = eviction
        self._rules = rules
        self._offline = offline

    async def run(self) -> None:
        """Removes expired images from time to time. Never returns."""
        while True:
            await asyncio.sleep(min([_LONGEST_PAUSE] + [max(0.1, rule.after / 4) for rule in self._rules]))
            try:
                await self.expire()
            except Exception:
                log.exception("could not expire images; serving goes on")

    async def expire(self) -> Gone:
        """Removes what has expired. Returns what this call has removed."""
        if self._offline():
            return Gone(0, 0)
        gone: list[Digest] = await self._catalog.read([], self._expired, time.time())
        return await self._eviction.remove(gone) if gone else Gone(0, 0)

    def _expired(self, catalog: Catalog, now: float) -> list[Digest]:
        limits = []
        for registry, path in catalog.repositories():
            rule = next((rule for rule in self._rules if rule.covers(registry, path)), None)
            if rule is not None:
                limits.append((registry, path, now - rule.after))
        expired = catalog.expired(limits) if limits else []
        return expired + [digest for digest, _ in catalog.spent_manifests(now - _SPENT)]
