"""Has scanners look at what is cached, one image at a time, what clients have pulled last first, and again from time to time. Nothing waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mirror import metrics
from mirror.errors import MirrorError
from mirror.locks import attempt
from mirror.names import Digest, Reference, Repository, image_name
from mirror.storage.inventory import Image, Inventory
from mirror.storage.scans import ScanResult, keep_scan_result, scan_results, worse
from mirror.storage.store import Store
from mirror.tasks import BackgroundTask

log = logging.getLogger(__name__)

_LOOK = 5.0
"""Seconds between two looks at what was pulled."""
_LEAD = 30.0
"""Seconds between two tries to become the process that scans."""
_AGAIN = 3600.0
"""Seconds after which a scan that failed is tried again, unless the scanner's interval is shorter."""
_MOST = 500
"""Images that are looked at: those that were pulled last, then those that were not."""


@dataclass(frozen=True, slots=True)
class Scanner:
    """A ``[[scan]]`` table. Times in seconds; `fits` says which images it is for."""

    name: str
    command: tuple[str, ...]
    interval: float
    timeout: float
    fits: Callable[[Repository, Reference], bool] = field(compare=False)


class Scanning:
    """The scanners of one process."""

    def __init__(self, store: Store, inventory: Inventory, folder: Path, changed: Callable[[], Awaitable[None]]) -> None:
        """Images are written into `folder` for the scanners. `changed` is called when a result may change what may be pulled."""
        self._store = store
        self._inventory = inventory
        self._folder = folder
        self._changed = changed
        self._scanners: Sequence[Scanner] = ()
        self._seen: dict[tuple[Scanner, Digest, int], float] = {}
        """Until when nothing is due of an image, by how much of it is missing."""
        self._work = BackgroundTask(self._run)

    def take(self, scanners: Sequence[Scanner]) -> None:
        """Has other scanners look from now on."""
        self._scanners = scanners
        self._seen.clear()
        for scanner in scanners:
            # Prometheus' `increase` misses a counter's first event otherwise.
            for result in ("done", "failed"):
                metrics.scans.labels(scanner.name, result)

    def start(self) -> None:
        self._work.start()

    async def aclose(self) -> None:
        """Ends a scanner that runs."""
        await self._work.aclose()

    async def _run(self) -> None:
        with contextlib.ExitStack() as held:
            while True:
                await asyncio.sleep(_LOOK)
                if self._scanners:
                    try:
                        await asyncio.to_thread(self._folder.mkdir, mode=0o700, exist_ok=True)
                        held.enter_context(attempt(self._folder / "lock"))
                        break
                    except OSError as error:
                        log.debug("another process scans, or %s cannot be used: %s", self._folder, error)
                        await asyncio.sleep(_LEAD)
            # What a process has left that was killed.
            for left in self._folder.glob("scan-*"):
                await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
            while True:
                try:
                    await self._look()
                except Exception:
                    log.exception("images cannot be scanned now; serving goes on")
                await asyncio.sleep(_LOOK)

    async def _look(self) -> None:
        if not self._scanners:
            return
        now = time.time()
        self._seen = {key: until for key, until in self._seen.items() if until > now}
        page = await self._inventory.images("", "pulled", 0, _MOST)
        for image in page.entries:
            for scanner in self._scanners:
                if (scanner, image.digest, image.missing) not in self._seen and scanner.fits(image.repository, image.reference):
                    try:
                        due = await self._scan(scanner, image)
                    except Exception:
                        # The others are looked at all the same.
                        log.exception(
                            "the scanner %s cannot look at %s", scanner.name, image_name(image.repository, image.reference)
                        )
                        due = now + min(_AGAIN, scanner.interval)
                    self._seen[scanner, image.digest, image.missing] = due

    async def _scan(self, scanner: Scanner, image: Image) -> float:
        """Scans what is due of an image. Returns when something is due again."""
        due = time.time() + scanner.interval
        details = await self._inventory.image(image.repository, image.reference)
        for variant in details.variants if details is not None else ():
            # Signatures and attestations are for no platform.
            if not variant.complete or (variant.platform or "unknown").startswith("unknown"):
                continue
            before = next(
                (one for one in await scan_results(self._store, variant.digest) if one.scanner == scanner.name),
                ScanResult(scanner.name, None),
            )
            again = before.tried + (min(_AGAIN, scanner.interval) if before.fault else scanner.interval)
            if again <= time.time():
                result = await self._scanned(scanner, image, variant.digest, before)
                await keep_scan_result(self._store, variant.digest, result)
                if result.worst != before.worst:
                    await self._changed()
                again = result.tried + (min(_AGAIN, scanner.interval) if result.fault else scanner.interval)
            due = min(due, again)
        return due

    async def _scanned(self, scanner: Scanner, image: Image, digest: Digest, before: ScanResult) -> ScanResult:
        # Only here: writing archives is more to import than a pull needs.
        from mirror.scans.running import ScanFailed, run_scanner

        name = image_name(image.repository, image.reference)
        try:
            counts = await run_scanner(scanner.command, scanner.timeout, self._folder, self._store, image.repository, digest)
        except (ScanFailed, MirrorError) as error:
            log.warning("the scanner %s failed on %s (%s): %s", scanner.name, name, digest, error)
            metrics.scans.labels(scanner.name, "failed").inc()
            return replace(before, tried=time.time(), fault=str(error))
        worst = worse(list(counts)) or "none"
        log.info("the scanner %s found in %s (%s): %s", scanner.name, name, digest, worst)
        metrics.scans.labels(scanner.name, "done").inc()
        return ScanResult(scanner.name, worst, counts, time.time(), time.time())
