"""Progress bars on a terminal: one for each piece of work that is under way, and one for all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from mirror.tasks import BackgroundTask
from mirror.units import format_size

_MOST = 10
"""Pieces that are shown at a time."""
_INTERVAL = 0.1


class Work(Protocol):
    """What has a bar, named as it says of itself. Sizes in bytes."""

    @property
    def total(self) -> int: ...
    @property
    def here(self) -> int: ...


class _Speed(ProgressColumn):
    """Bytes a second in the units of the size beside it: rich's own column has decimal ones."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("?" if speed is None else f"{format_size(speed)}/s", style="progress.data.speed")


class Bars:
    """Shown on standard error as long as this is open."""

    def __init__(self, pieces: Sequence[Work]) -> None:
        self._pieces = pieces
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _Speed(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._whole = self._bars.add_task("all" if len(pieces) > 1 else str(pieces[0]), total=None)
        self._rows: dict[int, TaskID] = {}
        self._background_task = BackgroundTask(self._look_on)

    async def __aenter__(self) -> Bars:
        self._bars.start()
        self._background_task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background_task.aclose()
        self._look()
        self._bars.stop()

    async def _look_on(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_INTERVAL)

    def _look(self) -> None:
        under_way = [number for number, this in enumerate(self._pieces) if this.total and this.here < this.total][:_MOST]
        under_way = under_way if len(self._pieces) > 1 else []
        for number in self._rows.keys() - set(under_way):
            self._bars.remove_task(self._rows.pop(number))
        for number in under_way:
            this = self._pieces[number]
            if number not in self._rows:
                self._rows[number] = self._bars.add_task(str(this))
            self._bars.update(self._rows[number], completed=this.here, total=this.total)
        known = sum(this.total for this in self._pieces)
        self._bars.update(self._whole, completed=sum(this.here for this in self._pieces), total=known or None)
