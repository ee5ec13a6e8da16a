"""The inventory, from the event loop: in a thread of its own, and kept up behind, so that its answers come fast."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.disk.executor import ThreadPool
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_INTERVAL = 10.0
"""Seconds between two readings of the manifests that have come."""


class InventoryExecutor:
    """Where people's questions are answered."""

    def __init__(self, root: Path) -> None:
        """Raises OSError, sqlite3.Error."""
        self._thread = ThreadPool(1)
        self._inventory = Inventory(root)
        self._background_task = BackgroundTask(self._keep_up)

    def start(self) -> None:
        """Begins to keep the inventory up."""
        self._background_task.start()

    async def ask(self, method: Callable[Concatenate[Inventory, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a method of the inventory answers: ``await desk.ask(Inventory.images, "redis", count=50)``. Raises OSError, sqlite3.Error."""
        return await self._thread.run(lambda: method(self._inventory, *args, **kwargs))

    async def aclose(self) -> None:
        await self._background_task.aclose()
        await self._thread.run(self._inventory.close)
        self._thread.close()

    async def _keep_up(self) -> None:
        while True:
            try:
                await self.ask(Inventory.learn)
            except (sqlite3.Error, OSError) as error:
                log.warning("the inventory cannot be kept up: %s", error)
            await asyncio.sleep(_INTERVAL)
