"""The downloads of all processes that share a store. Each process writes its flights into its status about once a second (`Store.set_status`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from mirror.downloads.flight import Flight
from mirror.downloads.flights import Flights
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask

_INTERVAL = 1.0
_SHOWN = 6.0
"""Seconds for which a download is shown after its end."""
_MOST = 200
"""Flights in a process's status, at most."""
_WEIGHT = 0.4
"""Weight of the newest observation in a rate."""


@dataclass(frozen=True, slots=True)
class Download:
    """A blob that is being downloaded. Sizes in bytes, times in seconds since the epoch, the rate in bytes per second."""

    digest: str
    repository: str
    size: int | None
    have: int
    rate: float
    readers: int
    began: float
    leads: bool
    """False where the process follows another one that downloads."""
    ended: bool = False
    error: str = ""
    """Why it failed; empty where it has not."""

    @property
    def left(self) -> float | None:
        """Seconds until it is complete, at this rate; None where that is not known."""
        return None if self.ended or self.size is None or self.rate < 1 else max(0, self.size - self.have) / self.rate


_NAMES = tuple(field.name for field in fields(Download))


class _Watched:
    """A flight under observation."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.began = time.time()
        self.ended: float | None = None
        self._leads = False
        self._rate: float | None = None
        self._seen = time.monotonic(), flight.progress.have

    def observe(self) -> Download:
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
    """Writes the flights of this process into its status, and reads those of all processes."""

    def __init__(self, store: Store, flights: Flights) -> None:
        self._store = store
        self._flights = flights
        self._watched: dict[Flight, _Watched] = {}
        self._background_task = BackgroundTask(self._write)

    def start(self) -> None:
        """Begins to write."""
        self._background_task.start()

    async def aclose(self) -> None:
        """Stops, and removes the status."""
        await self._background_task.aclose()

    async def downloads(self) -> list[Download]:
        """Returns the downloads that are under way or have just ended, the latest first."""
        return merged(await self._store.statuses())

    async def _write(self) -> None:
        try:
            while True:
                await self._flights.begun.wait()
                self._flights.begun.clear()
                while lines := self._observe():
                    await self._store.set_status([_written(line) for line in lines])
                    await asyncio.sleep(_INTERVAL)
                await self._store.set_status(None)
        finally:
            await self._store.set_status(None)

    def _observe(self) -> list[Download]:
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
        return [watched.observe() for watched in self._watched.values()]


def _written(line: Download) -> dict[str, Any]:
    """As `asdict`, which copies every value."""
    return {name: getattr(line, name) for name in _NAMES}


def merged(statuses: Iterable[Any]) -> list[Download]:
    """Returns each blob once, as the process that downloads it has it, with the readers of all processes. Skips statuses in another format."""
    found: dict[str, Download] = {}
    for status in statuses:
        for line in _lines(status):
            found[line.digest] = _merged(found[line.digest], line) if line.digest in found else line
    return sorted(found.values(), key=lambda line: (line.ended, -line.began, line.digest))


def _merged(one: Download, other: Download) -> Download:
    best = min(one, other, key=lambda line: (line.ended, not line.leads, line.error != ""))
    return Download(**{**asdict(best), "readers": one.readers + other.readers})


def _lines(status: Any) -> list[Download]:
    try:
        return [_line(line) for line in status]
    except (ValueError, TypeError, KeyError, OverflowError):
        return []


def _line(line: dict[str, Any]) -> Download:
    """Raises ValueError, TypeError, KeyError for another format."""
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
