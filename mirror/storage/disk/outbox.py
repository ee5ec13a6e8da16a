"""Implements `mirror.storage.outbox.Outbox` on the disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mirror.locks import attempt
from mirror.names import Digest
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.outbox import Entry


class DiskOutbox:
    """A queue that all processes on a cache directory share."""

    def __init__(self, root: Path, catalog: CatalogExecutor) -> None:
        self._lock = root / "catalog" / "outbox.lock"
        self._catalog = catalog

    def lead(self) -> AbstractContextManager[None]:
        return attempt(self._lock)

    async def take(self, count: int) -> list[Entry]:
        return await self._catalog.do(lambda catalog: catalog.outbox.take(count))

    async def done(self, entry: Entry) -> None:
        await self._catalog.do(lambda catalog: catalog.outbox.done(entry))

    async def put_back(self, entry: Entry) -> None:
        await self._catalog.do(lambda catalog: catalog.outbox.put_back(entry))

    async def note_wrong(self, digest: Digest) -> None:
        await self._catalog.write(lambda catalog: catalog.outbox.note_wrong(digest))

    async def counts(self) -> tuple[int, int]:
        return await self._catalog.do(lambda catalog: catalog.outbox.counts())
