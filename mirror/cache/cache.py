"""The cache: for every request for content it decides hit, join, fill, revalidate or stale."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirror import metrics
from mirror.cache.images import Images
from mirror.cache.lists import Lists, ListSource
from mirror.cache.negative import Negative
from mirror.cache.outcome import HIT, PASSED, Outcome, miss
from mirror.cache.prefetcher import Prefetcher
from mirror.cache.pull import Pulls
from mirror.cache.tags import ManifestSource, Tags
from mirror.cache.verification import Verification
from mirror.downloads.active import ActiveDownloads
from mirror.downloads.context import DownloadContext
from mirror.downloads.direct import DirectReader
from mirror.downloads.download import Source as BlobSource
from mirror.downloads.flight import Flight, Progress
from mirror.downloads.flights import FlightReader, Flights
from mirror.downloads.parts import Reader
from mirror.errors import Denied, StorageFull, Unknown, UpstreamBusy
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.storage.disk.catalog.inventory_executor import InventoryExecutor
from mirror.storage.disk.catalog.usage import Usage
from mirror.storage.disk.content import Content
from mirror.storage.disk.maintenance.garbage_collection import GarbageCollection
from mirror.storage.settings import Upkeep
from mirror.tasks import SingleFlight

_LOOK = 0.1
"""Seconds between two looks at how far a download is."""


class Blob(BlobSource, Protocol):
    """A blob that can be asked for its size."""

    async def describe(self) -> Descriptor: ...


class Source(ManifestSource, ListSource, Protocol):
    """A registry, as the cache asks it. Raises MirrorError."""

    def blob(self, repository: Repository, digest: Digest) -> Blob: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds; what each means is said in mirror/config."""

    upkeep: Upkeep
    tag_ttl: float
    negative_ttl: float
    revalidate_timeout: float
    prefetch: bool


class Cache:
    """Everything that is kept, and everything that is on its way."""

    def __init__(self, root: Path, source: Callable[[str], Source], limits: Limits) -> None:
        """`source` gives a registry by its name. Raises OSError, sqlite3.Error where the cache directory cannot be used."""
        self.content = Content(root, limits.upkeep)
        self.inventory = InventoryExecutor(root)
        self.usage = Usage(self.content.records)
        self._source = source
        self._negative = Negative(limits.negative_ttl)
        self._flights = Flights(self.content.store, self.content.disk)
        self.active = ActiveDownloads(root / "live", self._flights, self.content.disk)
        self._sizes: SingleFlight[Descriptor] = SingleFlight()
        self._learned_connections: dict[str, int] = {}
        self._prefetcher = Prefetcher(self.content, self._flights, self._context) if limits.prefetch else None
        self.manifests = Tags(self.content, source, self._negative, limits.tag_ttl, limits.revalidate_timeout)
        self.garbage_collection = GarbageCollection(self.content, limits.upkeep)
        self.verification = Verification(self.content, self.manifests, self.fetch)
        self.pulls = Pulls(self.content, self.manifests, self.fetch)
        self.images = Images(self.content, self.manifests)
        self.lists = Lists(self.content.records, source, limits.tag_ttl)

    def start(self) -> None:
        """Begins the chores behind."""
        self.content.start(self.verification.restore)
        self.inventory.start()
        self.usage.start()
        self.images.start()
        self.active.start()

    async def aclose(self) -> None:
        """Ends everything; downloads in progress stay resumable."""
        if self._prefetcher is not None:
            await self._prefetcher.aclose()
        await self.active.aclose()
        await self._flights.aclose()
        await self._sizes.aclose()
        await self.images.aclose()
        await self.manifests.aclose()
        await self.lists.aclose()
        await self._negative.aclose()
        await self.inventory.aclose()
        await self.usage.aclose()
        await self.content.aclose()

    async def blob(self, repository: Repository, digest: Digest, *, verify_first: bool = False) -> tuple[Reader, Outcome]:
        """A reader of a blob, once its size is known; the caller closes it. What is cached of one that is `doubted` is verified anew. Raises MirrorError."""
        if (cached := await self.content.open(digest, verify_first=verify_first)) is not None:
            return cached, HIT
        await self._negative.check(_key(repository, digest))
        if self._prefetcher is not None:
            self._prefetcher.begin(repository, digest)
        context = self._context(repository, digest)
        try:
            _, reader, joined = await self._join(repository, digest, context)
        except StorageFull:
            return await self._direct(digest, context), PASSED
        return reader, miss(joined)

    async def fetch(self, repository: Repository, digest: Digest) -> AsyncGenerator[Progress, None]:
        """Gets a blob into the cache, and tells from time to time how far it is. Raises MirrorError where it is not there in the end."""
        flight, reader, joined = await self._join(repository, digest, self._context(repository, digest))
        before = flight.progress.have
        try:
            while not await self._flights.ended(digest, _LOOK):
                yield flight.progress
        finally:
            await reader.aclose()
            if not joined:
                metrics.ahead_bytes.labels(repository.registry, "pull").inc(max(0, flight.progress.have - before))
        if flight.error is not None:
            raise flight.error
        if self.content.store.size(digest) is None:
            raise StorageFull("it came, but the cache's disk did not keep it: see the log")

    async def _join(self, repository: Repository, digest: Digest, context: DownloadContext) -> tuple[Flight, FlightReader, bool]:
        """A place in a blob's flight, once its size is known; the caller closes the reader. Raises MirrorError."""
        while True:
            flight, joined = self._flights.join(digest, context)
            reader = FlightReader(flight, context.source, self.content.disk)
            try:
                await flight.headers()
            except (Unknown, Denied, UpstreamBusy) as error:
                await reader.aclose()
                if joined:
                    # The one that began it may have asked another repository, or another registry, or have had to wait for others.
                    continue
                if isinstance(error, Unknown):
                    await self._negative.remember(_key(repository, digest), error)
                raise
            except BaseException:
                await reader.aclose()
                raise
            return flight, reader, joined

    async def stat_blob(self, repository: Repository, digest: Digest) -> tuple[Descriptor, Outcome]:
        """What a blob is, without having it: never downloads. Raises MirrorError."""
        size = self.content.store.size(digest)
        if size is not None:
            return _blob(digest, size), HIT
        if (size := self._flights.size(digest)) is not None:
            return _blob(digest, size), miss(collapsed=True)
        await self._negative.check(_key(repository, digest))
        descriptor, joined = await self._sizes.do((repository, digest), lambda: self._head(repository, digest))
        return descriptor, Outcome("miss", collapsed=joined)

    async def repositories(self) -> list[tuple[str, str]]:
        """(registry, path) of every repository with something cached."""
        return await self.content.records.read([], self.content.records.catalog.repositories)

    async def _head(self, repository: Repository, digest: Digest) -> Descriptor:
        try:
            return await self._source(repository.registry).blob(repository, digest).describe()
        except Unknown as error:
            await self._negative.remember(_key(repository, digest), error)
            raise

    async def _direct(self, digest: Digest, context: DownloadContext) -> Reader:
        reader = DirectReader(digest, context.source, self.content.disk)
        await reader.open()
        return reader

    def _context(self, repository: Repository, digest: Digest) -> DownloadContext:
        blob = self._source(repository.registry).blob(repository, digest)
        return DownloadContext(repository, blob, self.content.make_room, self.content.completed, self._learned_connections)


def _blob(digest: Digest, size: int) -> Descriptor:
    return Descriptor("application/octet-stream", digest, size)


def _key(repository: Repository, digest: Digest) -> str:
    return f"blob {repository} {digest}"
