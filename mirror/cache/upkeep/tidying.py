"""Everything that the chores of a running mirror do to the cache's size, at once: for `mirror gc`. Or what they would do, without doing it.

To pretend, the same code works on a copy of the catalog, and on files that it does not remove.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

from mirror.cache.catalog.records import Records
from mirror.cache.content import Content
from mirror.cache.flights.spool import sweep
from mirror.cache.store import BlobStore
from mirror.cache.upkeep.eviction import Eviction
from mirror.cache.upkeep.expiry import Expiry
from mirror.cache.upkeep.upkeep import Upkeep
from mirror.names import Digest

_ORPHANED = 3600.0
"""Seconds without use after which a blob goes that belongs to no image: its manifest may be on its way."""


@dataclass(frozen=True, slots=True)
class Gone:
    """How much has gone, or would. `size` in bytes."""

    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Tidied:
    """What was removed, by its reason."""

    expired: Gone
    orphans: Gone
    unfinished: Gone
    """Downloads that were given up a week ago."""
    evicted: Gone


class Tidying:
    """Works beside a running mirror or without one."""

    def __init__(self, content: Content, upkeep: Upkeep) -> None:
        self._content = content
        self._upkeep = upkeep

    async def tidy(self) -> Tidied:
        """Removes what has expired, what belongs to no image, what was given up, and what is too much. Raises OSError, sqlite3.Error."""
        await self._content.mend()
        return await self._tidy(self._content.records, self._content.eviction, pretend=False)

    async def pretend(self) -> Tidied:
        """What `tidy` would remove. Raises OSError, sqlite3.Error."""
        with tempfile.TemporaryDirectory(prefix="mirror-gc-") as folder:
            await self._content.records.do(self._content.records.catalog.copy, Path(folder))
            records = Records(Path(folder))
            try:
                eviction = Eviction(_Untouched(self._content.store.root), records, self._upkeep)
                return await self._tidy(records, eviction, pretend=True)
            finally:
                await records.aclose()

    async def _tidy(self, records: Records, eviction: Eviction, pretend: bool) -> Tidied:
        known = await records.do(records.catalog.content)

        async def gone(work: Awaitable[None]) -> Gone:
            nonlocal known
            await work
            before, known = known, await records.do(records.catalog.content)
            sizes = [size for digest, size in before.items() if digest not in known]
            return Gone(len(sizes), sum(sizes))

        expired = await gone(Expiry(records, eviction, self._upkeep.expire).expire())
        orphaned = await records.do(records.catalog.orphans, time.time() - _ORPHANED)
        orphans = await gone(eviction.remove(orphaned))
        unfinished = Gone(*await self._content.disk.run(lambda: sweep(self._content.store, pretend=pretend)))
        return Tidied(expired, orphans, unfinished, await gone(eviction.make_room(0)))


class _Untouched(BlobStore):
    """Says what it would remove."""

    def remove(self, digest: Digest) -> bool:
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True
