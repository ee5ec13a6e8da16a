"""Downloads in progress of a store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from mirror.errors import StorageFull
from mirror.names import Digest, Repository
from mirror.storage.extents import Extents

if TYPE_CHECKING:
    from hashlib import _Hash


class Room(Protocol):
    """The store, as its downloads see it."""

    content: dict[Digest, bytes]
    downloads: dict[tuple[Digest, int | None], MemoryDownload]

    def could_hold(self, digest: Digest) -> int: ...
    def make_room(self, what: str) -> None: ...
    def keep(self, digest: Digest, content: bytes) -> None: ...


class MemoryPeers:
    """Which blobs are asked of other mirrors of the fleet, for a store of one process."""

    def __init__(self) -> None:
        self._asked: Counter[Digest] = Counter()

    @contextmanager
    def asking_peer(self, digest: Digest) -> Iterator[None]:
        self._asked[digest] += 1
        try:
            yield
        finally:
            self._asked[digest] -= 1

    def asks_peer(self, digest: Digest) -> bool:
        return self._asked[digest] > 0


class MemoryDownload:
    """What all partials of one blob share."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.have = Extents()
        self.size: int | None = None
        self.verified = False
        self.current = True
        self.leader: MemoryPartial | None = None
        self.repository: Repository | None = None
        self.sources: list[tuple[Repository, int | None, bool]] = []
        self.wanted: list[tuple[int, int]] = []
        self.attending: set[MemoryPartial] = set()


class MemoryPartial:
    """Implements `mirror.storage.partial.Partial`."""

    def __init__(self, store: Room, digest: Digest, claimed: int | None) -> None:
        self.digest = digest
        self.inherited = False
        self._store = store
        self._key = digest, claimed
        self._download = store.downloads.setdefault(self._key, MemoryDownload())
        self._noted = self._download.sources
        self._taken = 0
        self._sent: list[tuple[int, int]] = []

    @property
    def have(self) -> Extents:
        return self._download.have

    @property
    def size(self) -> int | None:
        return self._download.size

    @property
    def verified(self) -> bool:
        return self._download.verified

    @property
    def current(self) -> bool:
        return self._download.current

    def lead(self) -> bool:
        if self._download.leader not in (None, self):
            return False
        if self.current:
            self._download.leader = self
            self.inherited = self.have.total > 0
        return True

    def follow(self) -> None:
        pass

    def finished(self) -> bool:
        content = self._store.content.get(self.digest)
        if content is None:
            return False
        self.discard()
        self._download = MemoryDownload()
        self._download.data, self._download.size = bytearray(content), len(content)
        self._download.verified, self._download.current = True, False
        return True

    def restart(self) -> None:
        self._download.data.clear()
        self._download.have, self._download.size = Extents(), None
        self.inherited = False

    async def set_size(self, size: int) -> None:
        if size > self._store.could_hold(self.digest):
            raise StorageFull(f"there can be no room for {size} bytes")
        self._download.size = size

    async def write(self, offset: int, data: bytes | memoryview, hasher: _Hash | None = None) -> None:
        download = self._download
        if (grown := offset + len(data) - len(download.data)) > 0:
            download.data.extend(bytes(grown))
        download.data[offset : offset + len(data)] = data
        if hasher is not None:
            hasher.update(data)
        download.have.add(offset, offset + len(data))
        self._store.make_room(f"{len(data)} bytes of {self.digest}")

    async def hash(self, hasher: _Hash, start: int, end: int) -> int:
        part = bytes(self._download.data[start:end])
        hasher.update(part)
        return start + len(part)

    def slice(self, start: int, end: int) -> bytes:
        return bytes(self._download.data[start:end])

    async def commit(self) -> None:
        self._download.verified = True
        self._end()
        self._store.keep(self.digest, bytes(self._download.data))
        self._store.make_room(str(self.digest))

    def release(self) -> None:
        if self._download.leader is self:
            self._download.leader = None

    def discard(self) -> None:
        self._end()

    def close(self) -> None:
        self.attend(False)
        self.release()

    @property
    def leader(self) -> Repository | None:
        return self._download.repository

    @property
    def attended(self) -> bool:
        return len(self._download.attending - {self}) > 0

    def announce(self, leader: Repository) -> None:
        self._download.repository, self._download.sources, self._download.wanted = leader, [], []

    def attend(self, reading: bool) -> None:
        (self._download.attending.add if reading else self._download.attending.discard)(self)

    def add_source(self, repository: Repository, size: int | None, *, told: bool) -> None:
        known = {source: was_told for source, _, was_told in self._download.sources}
        if self.leader is not None and (repository not in known or told > known[repository]):
            self._download.sources.append((repository, size, told))

    def take_sources(self) -> list[tuple[Repository, int | None, bool]]:
        if self._noted is not self._download.sources:
            self._noted, self._taken = self._download.sources, 0
            self._sent.clear()
        new = self._noted[self._taken :]
        self._taken += len(new)
        return new

    def want(self, start: int, stop: int) -> None:
        if not any(first <= start < last for first, last in self._sent):
            self._sent.append((start, stop))
            self._download.wanted.append((start, stop))

    def take_wanted(self) -> list[tuple[int, int]]:
        wanted, self._download.wanted = self._download.wanted, []
        return wanted

    def _end(self) -> None:
        self._download.current = False
        self.release()
        if self._store.downloads.get(self._key) is self._download:
            del self._store.downloads[self._key]
