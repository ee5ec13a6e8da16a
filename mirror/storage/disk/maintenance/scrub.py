"""Reads everything again from time to time, gently, and heals what has rotted on the disk.

One process does it for all that share the directory. Damaged content is removed at once, so that nobody gets it, and fetched again where it is known who holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable

from mirror import file_locks
from mirror.errors import MirrorError
from mirror.names import Digest, Repository
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.reading import Reading

log = logging.getLogger(__name__)

_SHORTEST_PAUSE = 0.1
"""Seconds between two files, however small they are: each costs some 2 ms of this process, whatever its size."""
_LONGEST_PAUSE = 60.0
"""Seconds until it is looked again for what is due."""


Restore = Callable[[Repository, Digest, bool], Awaitable[None]]
"""Brings back content that a repository holds; True for a manifest. Raises MirrorError."""


class Scrub:
    """A chore."""

    def __init__(self, store: BlobStore, records: CatalogExecutor, restore: Restore, rate: int, interval: float) -> None:
        """`rate` in bytes a second; content is read again after `interval` seconds."""
        self._store = store
        self._records = records
        self._restore = restore
        self._rate = rate
        self._interval = interval

    async def run(self) -> None:
        """Never ends."""
        reading = Reading(self._store, self._rate)
        with contextlib.closing(reading), open(self._store.root / "catalog" / "scrub.lock", "wb") as file:
            await reading.start()
            while not file_locks.try_exclusive(file.fileno()):
                await asyncio.sleep(_LONGEST_PAUSE)
            while True:
                try:
                    due = await self._records.read(None, self._records.catalog.unverified, time.time() - self._interval)
                    if due is not None:
                        await self._check(*due, reading)
                    await asyncio.sleep(_SHORTEST_PAUSE if due else min(_LONGEST_PAUSE, self._interval / 4))
                except Exception:
                    log.exception("could not scrub; serving goes on")
                    await asyncio.sleep(_LONGEST_PAUSE)

    async def _check(self, digest: Digest, size: int, reading: Reading) -> None:
        catalog = self._records.catalog
        try:
            fd = await reading.open(digest)
        except FileNotFoundError:
            # Evicted a moment ago, or deleted by hand.
            await self._records.write(catalog.forget, [digest])
            return
        try:
            if await reading.intact(fd, digest, size):
                await self._records.write(catalog.set_verified, [digest], time.time())
                return
            self._store.remove_damaged(fd, digest)
        finally:
            os.close(fd)
        holder = await self._records.read(None, catalog.holder, digest)
        is_manifest = await self._records.read(None, catalog.manifest_type, digest) is not None
        await self._records.write(catalog.forget, [digest])
        if holder is not None:
            try:
                await self._restore(holder, digest, is_manifest)
            except MirrorError as error:
                log.warning("%s cannot be fetched again now, but will be when it is asked for: %s", digest, error)
