"""The cache: for every request for content it decides hit, join, fill, revalidate or stale."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirror.cache.ahead import Ahead
from mirror.cache.catalog.desk import Desk
from mirror.cache.catalog.usage import Usage
from mirror.cache.content import Content
from mirror.cache.flights.board import Board
from mirror.cache.flights.direct import DirectReader
from mirror.cache.flights.download import Source as BlobSource
from mirror.cache.flights.flight import Flight, Progress
from mirror.cache.flights.flights import FlightReader, Flights
from mirror.cache.flights.ground import Ground
from mirror.cache.flights.parts import Reader
from mirror.cache.images import Images
from mirror.cache.lists import Lists, ListSource
from mirror.cache.negative import Negative
from mirror.cache.outcome import HIT, PASSED, Outcome, miss
from mirror.cache.pulling import Pulls
from mirror.cache.tags import ManifestSource, Tags
from mirror.cache.upkeep.tidying import Tidying
from mirror.cache.upkeep.upkeep import Upkeep
from mirror.cache.upkeep.verification import Verification
from mirror.errors import Denied, StorageFull, Unknown, UpstreamBusy
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.tasks import Once

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
        self.desk = Desk(root)
        self.usage = Usage(self.content.records)
        self._source = source
        self._negative = Negative(limits.negative_ttl)
        self._flights = Flights(self.content.store, self.content.disk)
        self.board = Board(root / "live", self._flights, self.content.disk)
        self._sizes: Once[Descriptor] = Once()
        self._paid: dict[str, int] = {}
        self._ahead = Ahead(self.content, self._flights, self._ground) if limits.prefetch else None
        self.manifests = Tags(self.content, source, self._negative, limits.tag_ttl, limits.revalidate_timeout)
        self.tidying = Tidying(self.content, limits.upkeep)
        self.verification = Verification(self.content, self.manifests, self.fetch)
        self.pulls = Pulls(self.content, self.manifests, self.fetch)
        self.images = Images(self.content, self.manifests)
        self.lists = Lists(self.content.records, source, limits.tag_ttl)

    def start(self) -> None:
        """Begins the chores behind."""
        self.content.start(self.verification.restore)
        self.desk.start()
        self.usage.start()
        self.images.start()
        self.board.start()

    async def aclose(self) -> None:
        """Ends everything; downloads in progress stay resumable."""
        if self._ahead is not None:
            await self._ahead.aclose()
        await self.board.aclose()
        await self._flights.aclose()
        await self._sizes.aclose()
        await self.images.aclose()
        await self.manifests.aclose()
        await self.lists.aclose()
        await self._negative.aclose()
        await self.desk.aclose()
        await self.usage.aclose()
        await self.content.aclose()

    async def blob(self, repository: Repository, digest: Digest, *, doubted: bool = False) -> tuple[Reader, Outcome]:
        """A reader of a blob, once its size is known; the caller closes it. What is cached of one that is `doubted` is verified anew. Raises MirrorError."""
        if (cached := await self.content.open(digest, doubted=doubted)) is not None:
            return cached, HIT
        await self._negative.check(_key(repository, digest))
        if self._ahead is not None:
            self._ahead.begin(repository, digest)
        ground = self._ground(repository, digest)
        try:
            _, reader, joined = await self._embark(repository, digest, ground)
        except StorageFull:
            return await self._direct(digest, ground), PASSED
        return reader, miss(joined)

    async def fetch(self, repository: Repository, digest: Digest) -> AsyncGenerator[Progress, None]:
        """Gets a blob into the cache, and tells from time to time how far it is. Raises MirrorError where it is not there in the end."""
        flight, reader, _ = await self._embark(repository, digest, self._ground(repository, digest))
        try:
            while not await self._flights.ended(digest, _LOOK):
                yield flight.progress
        finally:
            await reader.aclose()
        if flight.error is not None:
            raise flight.error
        if self.content.store.size(digest) is None:
            raise StorageFull("it came, but the cache's disk did not keep it: see the log")

    async def _embark(self, repository: Repository, digest: Digest, ground: Ground) -> tuple[Flight, FlightReader, bool]:
        """A place in a blob's flight, once its size is known; the caller closes the reader. Raises MirrorError."""
        while True:
            flight, joined = self._flights.join(digest, ground)
            reader = FlightReader(flight, ground.source, self.content.disk)
            try:
                await flight.departed()
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

    async def _direct(self, digest: Digest, ground: Ground) -> Reader:
        reader = DirectReader(digest, ground.source, self.content.disk)
        await reader.open()
        return reader

    def _ground(self, repository: Repository, digest: Digest) -> Ground:
        blob = self._source(repository.registry).blob(repository, digest)
        return Ground(repository, blob, self.content.make_room, self.content.landed, self._paid)


def _blob(digest: Digest, size: int) -> Descriptor:
    return Descriptor("application/octet-stream", digest, size)


def _key(repository: Repository, digest: Digest) -> str:
    return f"blob {repository} {digest}"
