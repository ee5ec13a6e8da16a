"""`mirror verify`: reads and hashes everything cached. The scrub does the same over weeks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, Mapping

from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.disk.maintenance.reading import Reading
from mirror.storage.store import State, Verified
from mirror.threads import ThreadPool

_NOTED = 256
"""Contents whose verification is recorded in one call."""


class Verification:
    """A mirror may be running on the directory."""

    def __init__(self, blobs: BlobStore, threads: ThreadPool, catalog: CatalogExecutor) -> None:
        self._blobs = blobs
        self._threads = threads
        self._catalog = catalog

    async def contents(self) -> dict[Digest, int]:
        """See `Store.contents`. Includes files without a row, which get one at the next start."""
        known = await self._catalog.do(Catalog.content)
        found = await self._threads.run(lambda: dict(self._blobs.scan()))
        return {**found, **known}

    async def verify(self, contents: Mapping[Digest, int], remove: bool) -> AsyncGenerator[Verified, None]:
        """See `Store.verify`."""
        whole: list[Digest] = []
        with contextlib.closing(Reading(self._blobs)) as reading:
            await reading.start()
            try:
                for digest, size in contents.items():
                    try:
                        state = await self._state(reading, digest, size, remove)
                    except OSError as error:
                        yield Verified(digest, size, State.UNREADABLE, fault=error.strerror or str(error))
                        continue
                    if state is State.MISSING and digest not in await self._catalog.do(Catalog.content):
                        # Evicted, or deleted, since.
                        continue
                    if state is State.WHOLE:
                        whole.append(digest)
                        yield Verified(digest, size, state)
                    else:
                        yield await self._damaged(digest, size, state, remove)
                    if len(whole) >= _NOTED:
                        await self._note(whole)
            finally:
                await self._note(whole)

    async def _state(self, reading: Reading, digest: Digest, size: int, remove: bool) -> State:
        try:
            fd = await reading.open(digest)
        except FileNotFoundError:
            return State.MISSING
        try:
            if await reading.intact(fd, digest, size):
                return State.WHOLE
            if remove:
                self._blobs.remove_damaged(fd, digest)
            return State.DAMAGED
        finally:
            os.close(fd)

    async def _damaged(self, digest: Digest, size: int, state: State, remove: bool) -> Verified:
        holder = await self._catalog.do(Catalog.holder, digest)
        is_manifest = await self._catalog.do(Catalog.manifest_type, digest) is not None
        if remove:
            await self._catalog.do(Catalog.forget, [digest], self._blobs.is_gone)
        return Verified(digest, size, state, holder, is_manifest)

    async def _note(self, whole: list[Digest]) -> None:
        await self._catalog.write(Catalog.set_verified, tuple(whole), time.time())
        whole.clear()
