"""Runs the inventory's queries in a thread of their own, and reads new manifests in the background, so that answers come fast."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from mirror.errors import CatalogFailed
from mirror.names import Reference, Repository
from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.inventory import Details, History, Image, Page, Pulled, RepositoryLine, Totals, UnderWay
from mirror.tasks import BackgroundTask, close_all
from mirror.threads import ThreadPool

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_INTERVAL = 10.0
"""Seconds between two readings of new manifests."""


class InventoryExecutor:
    """Implements `mirror.storage.inventory.Inventory`. Each method raises CatalogFailed if the catalog cannot be read."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._thread = ThreadPool(1)
        self._inventory: Inventory | None = None
        self._background_task = BackgroundTask(self._keep_up)

    def start(self) -> None:
        """Starts reading new manifests in the background."""
        self._background_task.start()

    async def aclose(self) -> None:
        with contextlib.closing(self._thread):
            await close_all(self._background_task.aclose, self._close_inventory)

    async def _close_inventory(self) -> None:
        if self._inventory is not None:
            await self._thread.run(self._inventory.close)

    async def images(
        self,
        search: str = "",
        order: str = "name",
        start: int = 0,
        count: int | None = None,
        repository: Repository | None = None,
    ) -> Page[Image]:
        return await self._ask(lambda inventory: inventory.images(search, order, start, count, repository))

    async def image(self, repository: Repository, reference: Reference) -> Details | None:
        return await self._ask(lambda inventory: inventory.image(repository, reference))

    async def repositories(self, order: str = "name", start: int = 0, count: int = 50) -> Page[RepositoryLine]:
        return await self._ask(lambda inventory: inventory.repositories(order, start, count))

    async def most_pulled(self, count: int) -> tuple[Pulled, ...]:
        return await self._ask(lambda inventory: inventory.most_pulled(count))

    async def under_way(self, repository: Repository, digests: Iterable[str]) -> dict[str, UnderWay]:
        return await self._ask(lambda inventory: inventory.under_way(repository, digests))

    async def totals(self) -> Totals:
        return await self._ask(lambda inventory: inventory.totals())

    async def history(self) -> History:
        return await self._ask(lambda inventory: inventory.history())

    async def _ask(self, work: Callable[[Inventory], _T]) -> _T:
        def answer() -> _T:
            if self._inventory is None:
                self._inventory = Inventory(self._root)
            return work(self._inventory)

        try:
            return await self._thread.run(answer)
        except (sqlite3.Error, OSError) as error:
            raise CatalogFailed(f"the catalog in {self._root / 'catalog'} cannot be read: {error}") from error

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._ask(lambda inventory: inventory.learn())
            except CatalogFailed as error:
                log.warning("the inventory cannot be kept up: %s", error)
            await asyncio.sleep(_INTERVAL)
