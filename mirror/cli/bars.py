"""Progress bars on a terminal: one for each active task, and one for the total."""

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
"""Tasks shown at once."""
_INTERVAL = 0.1


class Work(Protocol):
    """A task with a bar. `str` of it is the label; sizes are in bytes."""

    @property
    def total(self) -> int: ...
    @property
    def here(self) -> int: ...


class _Speed(ProgressColumn):
    """Bytes per second in binary units, like the size beside it; rich's own column uses decimal ones."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("?" if speed is None else f"{format_size(speed)}/s", style="progress.data.speed")


class Bars:
    """An async context manager that shows the bars on standard error while it is open."""

    def __init__(self, tasks: Sequence[Work]) -> None:
        self._tasks = tasks
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _Speed(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._total = self._bars.add_task("all" if len(tasks) > 1 else str(tasks[0]), total=None)
        self._rows: dict[int, TaskID] = {}
        self._background_task = BackgroundTask(self._refresh_forever)

    async def __aenter__(self) -> Bars:
        self._bars.start()
        self._background_task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background_task.aclose()
        self._refresh()
        self._bars.stop()

    async def _refresh_forever(self) -> None:
        while True:
            self._refresh()
            await asyncio.sleep(_INTERVAL)

    def _refresh(self) -> None:
        active = [number for number, this in enumerate(self._tasks) if this.total and this.here < this.total][:_MOST]
        active = active if len(self._tasks) > 1 else []
        for number in self._rows.keys() - set(active):
            self._bars.remove_task(self._rows.pop(number))
        for number in active:
            this = self._tasks[number]
            if number not in self._rows:
                self._rows[number] = self._bars.add_task(str(this))
            self._bars.update(self._rows[number], completed=this.here, total=this.total)
        known = sum(this.total for this in self._tasks)
        self._bars.update(self._total, completed=sum(this.here for this in self._tasks), total=known or None)
