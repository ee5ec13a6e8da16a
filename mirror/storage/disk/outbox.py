"""Implements `mirror.storage.outbox.Outbox` on the disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mirror.locks import attempt
from mirror.names import Digest, Reference, Repository
from mirror.storage.disk.catalog.executor import CatalogExecutor
from mirror.storage.outbox import Entry

_MOST_GONE = 1000
"""What is gone, at once."""


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

    async def gone(self, repository: Repository | None = None) -> list[tuple[Repository, Reference]]:
        return await self._catalog.do(lambda catalog: catalog.outbox.gone(repository, _MOST_GONE))

    async def is_gone(self, repository: Repository, reference: Reference) -> bool:
        return await self._catalog.do(lambda catalog: catalog.outbox.is_gone(repository, reference))

    async def forget_gone(self, repository: Repository, reference: Reference) -> None:
        await self._catalog.do(lambda catalog: catalog.outbox.forget_gone(repository, reference))

    async def note_wrong(self, digest: Digest) -> None:
        await self._catalog.write(lambda catalog: catalog.outbox.note_wrong(digest))

    async def note_fetched(self, repository: Repository | None, reference: Reference) -> None:
        await self._catalog.write(lambda catalog: catalog.outbox.note_fetched(repository, reference))

    async def counts(self) -> tuple[int, int]:
        return await self._catalog.do(lambda catalog: catalog.outbox.counts())
