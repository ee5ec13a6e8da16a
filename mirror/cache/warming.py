"""Pulls the images of ``[[warm]]`` lists by a schedule, as ``mirror pull`` does; while they are listed, they are pinned.

One process does it for all that share the cache directory. What has been pulled, and when, is in the store, so that a restart pulls nothing that is not due.
A pull that fails is tried again by itself, after a minute, then after twice that each time, up to an hour; the others do not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mirror import metrics
from mirror.backoff import doubled
from mirror.cache.attached import Attached, fetch_attached
from mirror.cache.lists import Lists
from mirror.cache.pull import Pull, Pulls
from mirror.errors import CatalogFailed, MirrorError, Offline, StorageFull
from mirror.names import Reference, Repository, image_name
from mirror.storage.store import ListedImage, Store
from mirror.tasks import BackgroundTask, SingleFlight, close_all

log = logging.getLogger(__name__)

_FIRST_RETRY, _LONGEST_RETRY = 60.0, 3600.0
_INTERVAL = 60.0
"""Seconds until the files of lists are read again, and after an unexpected failure."""
_LEAD_INTERVAL = 5.0
"""Seconds until a process tries again to become the one that pulls."""
_JITTER, _MOST_JITTER = 0.1, 300.0
"""The share of an interval, and the seconds, by which pulls are late at most: not all mirrors ask a registry at the same time."""

Images = list[tuple[Repository, Reference]]


@dataclass(frozen=True, slots=True)
class WarmList:
    """A list of images to pull. `interval` in seconds, or `at`, a time of day such as ``02:00``: one of the two is set."""

    name: str
    read: Callable[[], Images]
    """Returns the images. Blocks. Raises ValueError if a file cannot be used."""
    platforms: Collection[str] | None
    """None for all that an index lists."""
    interval: float | None
    at: str | None
    referrers: bool = False
    """True if signatures, and whatever else refers to the images, are pulled and kept too."""

    def due(self, image: ListedImage) -> float:
        """Returns when an image is pulled next, in seconds since the epoch."""
        regular = self._regular(image)
        if not image.failures or image.tried is None:
            return regular
        longest = _LONGEST_RETRY if self.interval is None else max(_FIRST_RETRY, min(_LONGEST_RETRY, self.interval))
        retry = image.tried + doubled(_FIRST_RETRY, image.failures - 1, longest)
        return min(regular, retry) if regular > image.tried else retry

    def _regular(self, image: ListedImage) -> float:
        last = image.since if image.ran is None else image.ran
        chance = zlib.crc32(f"{self.name} {last}".encode()) / 2**32
        if self.at is not None:
            moment = _clock_shows(self.at, last, 0)
            return (moment if moment > last else _clock_shows(self.at, last, 1)) + chance * _MOST_JITTER
        assert self.interval is not None
        return last if image.ran is None else last + self.interval + chance * min(_JITTER * self.interval, _MOST_JITTER)


@dataclass(frozen=True, slots=True)
class WarmState:
    """How a list fares. Times in seconds since the epoch."""

    name: str
    platforms: Collection[str] | None
    interval: float | None
    at: str | None
    images: int
    pulled: int
    """How many of the images have been pulled since they were listed."""
    last: float | None
    """When the last pull of one began that succeeded; None if none has."""
    next: float | None
    """When the next pull is due; None if the list is empty."""
    failures: tuple[tuple[str, str], ...]
    """Images whose last pull failed, with the reasons."""
    problem: str
    """Why its file cannot be used; empty if it can."""


class Warming:
    """Pulls lists."""

    def __init__(self, store: Store, pulls: Pulls, lists: Lists, offline: Callable[[], bool]) -> None:
        """`pulls` is for this only; `lists` gives what refers to images. While `offline`, nothing is pulled."""
        self._store = store
        self._pulls = pulls
        self._referrers = lists
        self._offline = offline
        self._lists: tuple[WarmList, ...] = ()
        self._stored: Mapping[str, Images | None] | None = None
        """What was last written to the store; None if nothing was yet."""
        self._problems: dict[str, str] = {}
        self._measured: set[str] = set()
        self._runs: SingleFlight[None] = SingleFlight()
        self._woken = asyncio.Event()
        self._background_task = BackgroundTask(self._run)

    def start(self) -> None:
        self._background_task.start()

    async def aclose(self) -> None:
        """Ends pulls; the next ones continue where they stopped."""
        await close_all(self._background_task.aclose, self._runs.aclose)

    def take(self, lists: Sequence[WarmList]) -> None:
        """Replaces the lists, and looks at once what is due."""
        self._lists = tuple(lists)
        self._woken.set()

    async def state(self) -> list[WarmState]:
        """Returns how each list fares, whichever process pulls. Raises CatalogFailed."""
        if not self._lists:
            return []
        known = await self._store.listed()
        return [await self._state_of(this, [image for image in known if image.list == this.name]) for this in self._lists]

    async def _state_of(self, this: WarmList, images: list[ListedImage]) -> WarmState:
        document = await self._store.document(_problem_key(this.name))
        return WarmState(
            this.name,
            this.platforms,
            this.interval,
            this.at,
            len(images),
            sum(image.ran is not None for image in images),
            max((image.ran for image in images if image.ran is not None), default=None),
            min(map(this.due, images), default=None),
            tuple((image_name(image.repository, image.reference), image.fault) for image in images if image.fault),
            str(document["problem"]) if document else "",
        )

    async def _run(self) -> None:
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self._store.lead_lists())
                    break
                except OSError:
                    await asyncio.sleep(_LEAD_INTERVAL)
            while True:
                self._woken.clear()
                try:
                    pause = await self._start_due()
                except CatalogFailed as error:
                    if self._lists:
                        log.warning("the lists of [[warm]] cannot be pulled now: %s", error)
                    pause = _INTERVAL
                except Exception:
                    log.exception("the lists of [[warm]] cannot be pulled now; serving goes on")
                    pause = _INTERVAL
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()

    async def _start_due(self) -> float:
        """Starts to pull what is due. Returns the seconds until the next time. Raises CatalogFailed."""
        lists = self._lists
        await self._update(lists)
        if not lists:
            await self._woken.wait()
        images = await self._store.listed()
        pause = _INTERVAL
        for this in lists:
            now = time.time()
            own = [image for image in images if image.list == this.name]
            due = [image for image in own if this.due(image) <= now]
            if due and not self._offline():
                self._runs.start(this.name, partial(self._pull_all, this, due))
            else:
                pause = min([pause, *(max(0.0, this.due(image) - now) for image in own if image not in due)])
            self._measure(this.name, own, min(map(this.due, own), default=0.0))
        for name in self._measured - {this.name for this in lists}:
            self._measure(name, [], 0.0)
        self._measured = {this.name for this in lists}
        return pause

    async def _update(self, lists: Sequence[WarmList]) -> None:
        """Reads the lists, and stores which images they have. Raises CatalogFailed."""
        wanted: dict[str, Images | None] = {}
        for this in lists:
            try:
                wanted[this.name] = await asyncio.to_thread(this.read)
                problem = ""
            except ValueError as error:
                wanted[this.name] = None
                problem = str(error)
            except Exception:
                log.exception("[[warm]] %s: its files cannot be read", this.name)
                wanted[this.name] = None
                problem = "an unexpected error: see the log"
            if problem != self._problems.get(this.name):
                if problem:
                    log.error("[[warm]] %s: %s; the images that it had before stay in it", this.name, problem)
                await self._store.set_document(_problem_key(this.name), {"problem": problem})
                self._problems[this.name] = problem
        if wanted != self._stored:
            await self._store.set_listed(wanted)
            self._stored = wanted

    async def _pull_all(self, this: WarmList, images: Sequence[ListedImage]) -> None:
        began = time.time()
        count = "1 image" if len(images) == 1 else f"{len(images)} images"
        log.info("[[warm]] %s: pulling %s", this.name, count)
        faults = await asyncio.gather(*(self._pull(this, image, began) for image in images))
        failed = sum(fault != "" for fault in faults)
        log.log(
            logging.WARNING if failed else logging.INFO,
            "[[warm]] %s: %d of %s pulled",
            this.name,
            len(images) - failed,
            count,
        )
        self._woken.set()

    async def _pull(self, this: WarmList, image: ListedImage, began: float) -> str:
        """Returns why the pull of an image failed; empty if it did not."""
        pull = Pull(image.repository, image.reference, this.platforms)
        attached = Attached()
        try:
            try:
                await self._pulls.pull(pull)
                fault = pull.unchecked
            except StorageFull as error:
                fault = error.message
            fault = await self._pulls.why_missing(pull) or fault
            if this.referrers:
                attached = await fetch_attached(self._pulls, self._referrers, [pull])
                if attached.faults and not fault:
                    fault = f"signatures and the like may be missing: {next(iter(attached.faults))}"
        except Offline as error:
            # The switch was turned meanwhile.
            return error.message
        except MirrorError as error:
            fault = error.message
        except Exception:
            log.exception("[[warm]] %s: %s cannot be pulled", this.name, pull)
            fault = "an unexpected error: see the log"
        if self._offline():
            return fault
        metrics.warm_pulls.labels(this.name, "failed" if fault else "pulled").inc()
        if fault:
            log.warning("[[warm]] %s: %s: %s", this.name, pull, fault)
        await self._store.note_listed(this.name, image.repository, image.reference, began, fault, attached.digests)
        return fault

    def _measure(self, name: str, images: Sequence[ListedImage], due: float) -> None:
        for result in ("pulled", "failed"):
            # Prometheus' `increase` misses a counter's first event otherwise.
            metrics.warm_pulls.labels(name, result)
        metrics.warm_images.labels(name).set(len(images))
        offline = self._offline()
        metrics.warm_failing.labels(name).set(0 if offline else sum(image.fault != "" for image in images))
        metrics.warm_unreadable.labels(name).set(bool(self._problems.get(name)))
        metrics.warm_last.labels(name).set(max((image.ran or 0.0 for image in images), default=0.0))
        metrics.warm_next.labels(name).set(due)


def _clock_shows(time_of_day: str, moment: float, days: int) -> float:
    """Returns when the local clock shows a time, so many days after the day of a moment; in seconds since the epoch, as `moment`."""
    hour, minute = map(int, time_of_day.split(":"))
    day = time.localtime(moment)
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday + days, hour, minute, 0, 0, 0, -1))


def _problem_key(name: str) -> str:
    return f"warm {name}"
