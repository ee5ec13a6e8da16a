"""Reads everything again from time to time, slowly, and replaces what the disk has damaged.

One process does it for all that share the directory. Damaged content is removed at once, so that nobody gets it, and fetched again where it is known who holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time

from mirror.errors import MirrorError
from mirror.locks import attempt
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.reading import Reading
from mirror.storage.store import Restore

log = logging.getLogger(__name__)

_SHORTEST_PAUSE = 0.1
"""Seconds between two files: each costs about 2 ms of this process, however small it is."""
_LONGEST_PAUSE = 60.0
"""Seconds until the next query for files that are due."""
_POSTPONED = 3600.0
"""Seconds until a file that could not be read is tried again."""


class Scrub:
    """Reads the content that was verified the longest ago."""

    def __init__(self, store: BlobStore, catalog: CatalogExecutor, restore: Restore, rate: int, interval: float) -> None:
        """`rate` in bytes a second; content is read again after `interval` seconds."""
        self._store = store
        self._catalog = catalog
        self._restore = restore
        self._rate = rate
        self._interval = interval

    async def run(self) -> None:
        """Scrubs from time to time. Never returns."""
        reading = Reading(self._store, self._rate)
        with contextlib.closing(reading), contextlib.ExitStack() as held:
            await reading.start()
            while True:
                try:
                    held.enter_context(attempt(self._store.root / "catalog" / "scrub.lock"))
                    break
                except OSError:
                    await asyncio.sleep(_LONGEST_PAUSE)
            while True:
                try:
                    due = await self._catalog.read(None, Catalog.unverified, time.time() - self._interval)
                    if due is not None:
                        await self._check(*due, reading)
                    await asyncio.sleep(_SHORTEST_PAUSE if due else min(_LONGEST_PAUSE, self._interval / 4))
                except Exception:
                    log.exception("could not scrub; serving goes on")
                    await asyncio.sleep(_LONGEST_PAUSE)

    async def _check(self, digest: Digest, size: int, reading: Reading) -> None:
        try:
            fd = await reading.open(digest)
        except FileNotFoundError:
            # It was evicted a moment ago, or somebody deleted it.
            await self._catalog.write(Catalog.forget, [digest], self._store.is_gone)
            return
        except OSError as error:
            await self._postpone(digest, error)
            return
        try:
            try:
                intact = await reading.intact(fd, digest, size)
            except OSError as error:
                await self._postpone(digest, error)
                return
            if intact:
                await self._catalog.write(Catalog.set_verified, [digest], time.time())
                return
            self._store.remove_damaged(fd, digest)
        finally:
            os.close(fd)
        await self._repair(digest)

    async def _postpone(self, digest: Digest, error: OSError) -> None:
        """Postpones a file that cannot be read now, so that the others do not wait for it."""
        log.warning("%s cannot be scrubbed now: %s", digest, error)
        await self._catalog.write(Catalog.set_verified, [digest], time.time() - self._interval + _POSTPONED)

    async def _repair(self, digest: Digest) -> None:
        holder = await self._catalog.read(None, Catalog.holder, digest)
        is_manifest = await self._catalog.read(None, Catalog.manifest_type, digest) is not None
        await self._catalog.write(Catalog.forget, [digest], self._store.is_gone)
        if holder is not None:
            try:
                await self._restore(holder, digest, is_manifest)
            except MirrorError as error:
                log.warning("%s cannot be fetched again now, but will be when it is asked for: %s", digest, error)
