"""The cache: decides for each request whether it is a hit, joins a download, starts one, revalidates, or is served stale."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from mirror import metrics
from mirror.cache.cached_reader import CachedReader
from mirror.cache.embedded import EmbeddedReader, find_embedded
from mirror.cache.guarding import Guard, GuardedReader
from mirror.cache.images import Images
from mirror.cache.lists import Lists, ListSource
from mirror.cache.negative import Negative
from mirror.cache.newest import ManifestSource
from mirror.cache.outcome import HIT, PASSED, Outcome, miss
from mirror.cache.possession import Possession
from mirror.cache.prefetcher import Prefetcher
from mirror.cache.previews import Previews
from mirror.cache.pull import Pulls
from mirror.cache.search import Search, SearchSource
from mirror.cache.tag_details import TagDetails, TagDetailsSource
from mirror.cache.tags import Tags
from mirror.cache.timeline import Timelines
from mirror.cache.verification import Verification
from mirror.cache.warming import Warming
from mirror.cdn_loop import AskedOfPeer, passed
from mirror.client_login import acting_for
from mirror.downloads.active import ActiveDownloads
from mirror.downloads.context import DownloadContext
from mirror.downloads.direct import DirectReader
from mirror.downloads.download import Source as BlobSource
from mirror.downloads.flight import Progress
from mirror.downloads.flights import FlightReader, Flights
from mirror.downloads.parts import Reader
from mirror.errors import (
    BlobUnknown,
    Denied,
    SizeDisputed,
    StorageFull,
    StorageUnreadable,
    Unknown,
    UpstreamError,
)
from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository
from mirror.storage.inventory import Inventory
from mirror.storage.store import Store
from mirror.tasks import SingleFlight

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

_TOO_LARGE_FOR = 300.0
"""Seconds for which a blob is remembered as larger than the cache."""
_MOST_TOO_LARGE = 1000
_INTERVAL = 0.1
"""Seconds between two reports of a download's progress."""
_AT_ONCE = 4 * 1024 * 1024
"""Bytes of a cached blob that is sent too fast to be blocked meanwhile, where nothing is yet."""
_ASKED_OF_PEER = 1.5
"""Seconds for which a mirror of the fleet waits here for what is asked of another one: as many as it takes to find that one dead (mirror/upstream/watch.py)."""


Prove = Callable[[], Awaitable[None]]
"""Returns if a repository that is asked for content has it. Raises MirrorError."""


class Blob(BlobSource, Protocol):
    """A blob that can be asked for its size."""

    async def describe(self) -> Descriptor: ...


class Source(ManifestSource, ListSource, SearchSource, TagDetailsSource, Protocol):
    """A registry, as the cache asks it. Raises MirrorError."""

    def blob(self, repository: Repository, digest: Digest) -> Blob: ...
    def asks_mirror(self, repository: Repository, reference: Reference) -> bool: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds; what each means is said in mirror/config."""

    tag_ttl: float
    negative_ttl: float
    revalidate_timeout: float
    prefetch: bool


class Cache:
    """Serves content from the store, and from upstream what the store lacks."""

    def __init__(
        self,
        store: Store,
        inventory: Inventory,
        source: Callable[[str], Source],
        limits: Limits,
        default: str,
        aliases: Mapping[str, str],
        offline: Callable[[], bool] = lambda: False,
    ) -> None:
        """`source` gives a registry by its name; `default` is the one of names without one, `aliases` are other names. While `offline`, no tag and no list
        expires. The caller closes the store."""
        self.store = store
        self.inventory = inventory
        self._source = source
        self._guard: Guard | None = None
        self._negative = Negative(limits.negative_ttl)
        self._flights = Flights(store, self._context)
        self.active = ActiveDownloads(store, self._flights)
        self._sizes: SingleFlight[Descriptor] = SingleFlight()
        self._learned_connections: dict[str, int] = {}
        self._too_large: dict[tuple[Repository, Digest], float] = {}
        """Blobs larger than the cache, with when that was found: no download is begun for them, which would fetch more than was asked for."""
        self._prefetcher = Prefetcher(store, self._flights, self._context) if limits.prefetch else None
        self.manifests = Tags(store, source, self._negative, limits.tag_ttl, limits.revalidate_timeout, offline, self.fetch)
        self.verification = Verification(store, self.manifests, self.fetch)
        self.pulls = Pulls(store, self.manifests, self.fetch)
        self.images = Images(store, self.manifests)
        self.lists = Lists(store, source, limits.tag_ttl, offline=offline, own=self.manifests.own)
        self.warming = Warming(store, Pulls(store, self.manifests, self.fetch), self.lists, offline)
        self.possession = Possession(store, source, self.manifests.own)
        self.manifests.proves = self.possession.proves
        self.search = Search(inventory, source, default, aliases)
        self.previews = Previews(store, source)
        self.timelines = Timelines(store, inventory, self.previews)
        self.tag_details = TagDetails(source, self.manifests.own)
        self.guard = None

    @property
    def guard(self) -> Guard | None:
        """What decides what may be served; None if there is nothing to decide by."""
        return self._guard

    @guard.setter
    def guard(self, guard: Guard | None) -> None:
        self._guard = self.manifests.guard = self.lists.guard = guard
        if self._prefetcher is not None:
            self._prefetcher.guard = guard

    def start(self) -> None:
        """Begins the work in the background."""
        self.store.start(self.verification.restore)
        self.images.start()
        self.manifests.own.start()
        self.active.start()
        self.warming.start()

    async def __aenter__(self) -> Self:
        self._stack = await AsyncExitStack().__aenter__()
        # In the order of closing: what asks for content, then what brings it.
        closing = [
            self.warming,
            self._prefetcher,
            self.active,
            self._flights,
            self._sizes,
            self.images,
            self.manifests.own,
            self.manifests,
            self.lists,
            self.possession,
            self.search,
            self.tag_details,
            self.previews,
            self._negative,
        ]
        for part in reversed(closing):
            if part is not None:
                self._stack.push_async_callback(part.aclose)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes all parts, also if one of them fails to. Downloads in progress can be resumed."""
        await self._stack.aclose()

    async def blob(self, repository: Repository, digest: Digest, prove: Prove | None = None) -> tuple[Reader, Outcome]:
        """A reader of a blob, once its size is known; the caller closes it. `prove` is awaited where the repository has not been asked, and may raise. Raises
        MirrorError."""
        passed = -1
        if self._guard is not None:
            passed = self._guard.revision
            await self._guard.check_blob(repository, digest)
        reader, outcome = await self._blob(repository, digest, prove)
        if self._guard is None and outcome is HIT and reader.size is not None and reader.size <= _AT_ONCE:
            return reader, outcome
        return GuardedReader(reader, lambda: self._guard, repository, digest, passed), outcome

    async def _blob(self, repository: Repository, digest: Digest, prove: Prove | None) -> tuple[Reader, Outcome]:
        if self.manifests.own.covers(repository):
            return await self._own_blob(repository, digest), HIT
        try:
            if (cached := await self.store.open(digest)) is not None:
                await _proven(prove, cached)
                return CachedReader(
                    cached, digest, self.store, lambda: self._source(repository.registry).blob(repository, digest)
                ), HIT
        except StorageUnreadable as error:
            # It may well be cached: this time it is passed through, and not written again.
            log.warning("%s", error)
            return await self._direct(digest, self._context(repository, digest)), PASSED
        try:
            return await self._upstreams_blob(repository, digest, prove)
        except (Unknown, Denied, UpstreamError):
            if (data := await find_embedded(self.store, repository, digest)) is None:
                raise
            return EmbeddedReader(data), HIT

    async def _own_size(self, repository: Repository, digest: Digest) -> int:
        # A client that pushes asks so before it sends: what is here now must be here, and right, when the manifest comes.
        reader = await self.store.open(digest) if await self.store.hosted.touch(repository, digest) else None
        if reader is None:
            await self.store.hosted.check_complete()
            raise BlobUnknown(f"{repository.path} lives in this mirror, and has no blob {digest}")
        await reader.aclose()
        return reader.size or 0

    async def _own_blob(self, repository: Repository, digest: Digest) -> Reader:
        await self.manifests.own.check_blob(repository, digest)
        if (reader := await self.store.open(digest)) is None:
            await self.store.hosted.check_complete()
            raise BlobUnknown(f"{repository.path} has lost {digest} from the disk: push it again")
        return reader

    async def _upstreams_blob(self, repository: Repository, digest: Digest, prove: Prove | None) -> tuple[Reader, Outcome]:
        await self._negative.check(_key(repository, digest))
        # What nobody waits for is not fetched with a client's password.
        is_clients = (login := acting_for()) is not None and login.registry == repository.registry
        if self._prefetcher is not None and not passed().by_peer and not is_clients:
            self._prefetcher.begin(repository, digest)
        context = self._context(repository, digest)
        if self._too_large.get((repository, digest), float("-inf")) > time.monotonic() - _TOO_LARGE_FOR:
            return await self._direct(digest, context), PASSED
        try:
            reader = await self._join(repository, digest, context)
        except SizeDisputed as error:
            return await self._direct(digest, context, error.size), PASSED
        except StorageFull:
            direct = await self._direct(digest, context)
            if (direct.size or 0) > (await self.store.statistics()).limit:
                if len(self._too_large) >= _MOST_TOO_LARGE:
                    self._too_large.clear()
                self._too_large[repository, digest] = time.monotonic()
            return direct, PASSED
        if reader.told:
            self.possession.note(repository, digest)
        else:
            # Others have brought it meanwhile.
            await _proven(prove, reader)
        return reader, miss(reader.joined)

    async def fetch(self, repository: Repository, digest: Digest) -> AsyncGenerator[Progress, None]:
        """Downloads a blob into the cache, and yields its progress. Raises MirrorError if the blob is not cached in the end."""
        if self._guard is not None:
            await self._guard.check_blob(repository, digest)
        if self.manifests.own.covers(repository):
            await self._own_size(repository, digest)
            return
        reader = await self._join(repository, digest, self._context(repository, digest))
        try:
            while not await reader.ended(_INTERVAL):
                # There may have been none when the download began.
                if self._guard is not None and (error := self._guard.blocks(repository, digest)) is not None:
                    raise error
                yield reader.flight.progress
        finally:
            await reader.aclose()
            if not reader.joined:
                metrics.prefetched_bytes.labels(repository.registry, "pull").inc(reader.gained)
        if self.store.size(digest) is None:
            raise StorageFull("it was downloaded, but the cache's disk did not keep it: see the log")

    async def _join(self, repository: Repository, digest: Digest, context: DownloadContext) -> FlightReader:
        """Joins or starts a blob's flight and waits for its size. The caller closes the reader. Raises MirrorError."""
        reader = await self._reader(digest, context)
        try:
            await reader.open()
        except BaseException as error:
            await reader.aclose()
            if isinstance(error, Unknown):
                await self._negative.remember(_key(repository, digest), error)
            raise
        return reader

    async def _reader(self, digest: Digest, context: DownloadContext) -> FlightReader:
        """Joins or starts a blob's flight. Raises AskedOfPeer if another mirror of the fleet asks for what is asked of such a mirror for longer than one that is dead takes to be found out."""
        until = time.monotonic() + _ASKED_OF_PEER
        while True:
            try:
                return FlightReader(self._flights, digest, context)
            except AskedOfPeer:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(_INTERVAL)

    async def stat_blob(self, repository: Repository, digest: Digest, prove: Prove | None = None) -> tuple[Descriptor, Outcome]:
        """What a blob is, without having it: never downloads. `prove` is as for `blob`. Raises MirrorError."""
        if self._guard is not None:
            await self._guard.check_blob(repository, digest)
        if self.manifests.own.covers(repository):
            return _blob(digest, await self._own_size(repository, digest)), HIT
        with contextlib.suppress(StorageUnreadable):
            if (size := self.store.size(digest)) is not None:
                if prove is not None:
                    await prove()
                return _blob(digest, size), HIT
        if prove is None and (size := self._flights.size(digest, repository)) is not None:
            return _blob(digest, size), miss(collapsed=True)
        try:
            await self._negative.check(_key(repository, digest))
            key = repository, digest, self._source(repository.registry).asks_peer(repository, digest)
            descriptor, joined = await self._sizes.do(key, lambda: self._head(repository, digest))
        except (Unknown, Denied, UpstreamError):
            if (data := await find_embedded(self.store, repository, digest)) is None:
                raise
            return _blob(digest, len(data)), HIT
        return descriptor, Outcome("miss", collapsed=joined)

    async def repositories(self) -> list[Repository]:
        """Every repository with something cached."""
        return await self.store.repositories()

    async def _head(self, repository: Repository, digest: Digest) -> Descriptor:
        try:
            return await self._source(repository.registry).blob(repository, digest).describe()
        except Unknown as error:
            await self._negative.remember(_key(repository, digest), error)
            raise

    async def _direct(self, digest: Digest, context: DownloadContext, size: int | None = None) -> Reader:
        reader = DirectReader(digest, context.source, size)
        await reader.open()
        return reader

    def _context(self, repository: Repository, digest: Digest) -> DownloadContext:
        source = self._source(repository.registry)
        blob, asks_mirror = source.blob(repository, digest), source.asks_mirror(repository, digest)
        return DownloadContext(repository, blob, self._learned_connections, asks_mirror, passed().by_peer)


async def _proven(prove: Prove | None, reader: Reader) -> None:
    """Awaits `prove`, and closes the reader if that raises."""
    if prove is not None:
        try:
            await prove()
        except BaseException:
            await reader.aclose()
            raise


def _blob(digest: Digest, size: int) -> Descriptor:
    return Descriptor("application/octet-stream", digest, size)


def _key(repository: Repository, digest: Digest) -> str:
    return f"blob {repository} {digest}"
