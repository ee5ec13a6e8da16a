"""The board of departures: what is being downloaded, by all processes that share the cache directory.

Each process that has flights writes them about once a second into a small file of its own, ``live/<process>.json``, and removes it when nothing flies any more.
Who looks reads all files. One that was not written lately is that of a process that has died, and is cleared away: which process lives cannot be told by its
number, since those on one directory may be in different containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mirror.downloads.flight import Flight
from mirror.downloads.flights import Flights
from mirror.tasks import BackgroundTask
from mirror.threads import ThreadPool

_INTERVAL = 1.0
_SHOWN = 6.0
"""Seconds for which one that has ended is shown."""
_SILENT = 10.0
"""Seconds after which a file that is not written any more is not believed."""
_DEAD = 60.0
"""Seconds after which it is removed."""
_MOST = 200
"""Flights that a process tells of."""
_LARGEST_FILE = 1024 * 1024
_WEIGHT = 0.4
"""Of the newest observation in a rate."""


@dataclass(frozen=True, slots=True)
class Download:
    """One line of the board. Sizes in bytes, times in seconds since the epoch, the rate in bytes a second."""

    digest: str
    repository: str
    size: int | None
    have: int
    rate: float
    readers: int
    began: float
    leads: bool
    """False where that process reads along while another downloads."""
    ended: bool = False
    error: str = ""
    """Why it failed; empty where it did not."""

    @property
    def left(self) -> float | None:
        """Seconds until it is here, at this rate; None where that cannot be told."""
        return None if self.ended or self.size is None or self.rate < 1 else max(0, self.size - self.have) / self.rate


class _Watched:
    """A flight under observation."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.began = time.time()
        self.ended: float | None = None
        self._leads = False
        self._rate: float | None = None
        self._seen = time.monotonic(), flight.progress.have

    def look(self) -> Download:
        flight, now = self.flight, time.monotonic()
        state = flight.progress
        before, had = self._seen
        if self.ended is None and now > before:
            self._leads = state.leads
            rate = max(0, state.have - had) / (now - before)
            self._rate = rate if self._rate is None else (1 - _WEIGHT) * self._rate + _WEIGHT * rate
            self._seen = now, state.have
        ended = self.ended is not None
        have = state.have if not ended or flight.error is None else had
        error = flight.error.message if ended and flight.error is not None else ""
        return Download(
            str(flight.digest),
            str(flight.repository),
            state.size,
            have,
            self._rate or 0.0,
            state.readers,
            self.began,
            self._leads,
            ended,
            error[:500],
        )


class ActiveDownloads:
    """Writes this process's flights, and reads everybody's."""

    def __init__(self, folder: Path, flights: Flights) -> None:
        self._folder = folder
        self._file = folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self._flights = flights
        self._disk = ThreadPool(1)
        self._watched: dict[Flight, _Watched] = {}
        self._background_task = BackgroundTask(self._write)

    def start(self) -> None:
        """Begins to write."""
        self._background_task.start()

    async def aclose(self) -> None:
        """Stops writing; the file is gone."""
        try:
            await self._background_task.aclose()
        finally:
            self._disk.close()

    async def downloads(self) -> list[Download]:
        """All that is being downloaded, or just was: the latest first."""
        return await self._disk.run(read, self._folder)

    async def _write(self) -> None:
        try:
            while True:
                await self._flights.begun.wait()
                self._flights.begun.clear()
                while lines := self._look():
                    await self._disk.run(self._replace, lines)
                    await asyncio.sleep(_INTERVAL)
                await self._disk.run(self._remove)
        finally:
            await self._disk.run(self._remove)

    def _look(self) -> list[Download]:
        active, now = self._flights.active, time.monotonic()
        for flight in active:
            if flight not in self._watched and len(self._watched) < _MOST:
                self._watched[flight] = _Watched(flight)
        flying = set(active)
        for flight, watched in list(self._watched.items()):
            if flight not in flying:
                watched.ended = now if watched.ended is None else watched.ended
                if now - watched.ended > _SHOWN:
                    del self._watched[flight]
        return [watched.look() for watched in self._watched.values()]

    def _replace(self, lines: list[Download]) -> None:
        beside = self._file.with_suffix(".new")
        # A disk that will not take it costs the picture, never a download.
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            beside.write_text(json.dumps({"written": time.time(), "downloads": [asdict(line) for line in lines]}))
            beside.replace(self._file)

    def _remove(self) -> None:
        for path in (self._file, self._file.with_suffix(".new")):
            with contextlib.suppress(OSError):
                path.unlink()


def read(folder: Path) -> list[Download]:
    """What the files say, each blob once: as whoever downloads it has it, with everybody's readers. Clears away those of the dead."""
    found: dict[str, Download] = {}
    for path in sorted(folder.glob("*.*")):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > _DEAD:
                path.unlink()
            elif age < _SILENT and path.suffix == ".json":
                for line in _lines(path):
                    found[line.digest] = _merged(found[line.digest], line) if line.digest in found else line
    return sorted(found.values(), key=lambda line: (line.ended, -line.began, line.digest))


def _merged(one: Download, other: Download) -> Download:
    best = min(one, other, key=lambda line: (line.ended, not line.leads, line.error != ""))
    return Download(**{**asdict(best), "readers": one.readers + other.readers})


def _lines(path: Path) -> list[Download]:
    with open(path, "rb") as file:
        text = file.read(_LARGEST_FILE)
    try:
        return [_line(line) for line in json.loads(text)["downloads"]]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []


def _line(line: dict[str, Any]) -> Download:
    """Raises ValueError, TypeError, KeyError where it is something else."""
    size = line["size"]
    return Download(
        str(line["digest"]),
        str(line["repository"]),
        None if size is None else int(size),
        int(line["have"]),
        float(line["rate"]),
        int(line["readers"]),
        float(line["began"]),
        bool(line["leads"]),
        bool(line["ended"]),
        str(line["error"]),
    )
