"""Downloads on a store in memory, from sources in memory: what they do does not hang on a disk or on HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from mirror.downloads import filling, following, planner
from mirror.downloads.context import DownloadContext
from mirror.downloads.flight import WITHHELD
from mirror.downloads.flights import FlightReader, Flights
from mirror.errors import (
    BlobUnknown,
    MirrorError,
    RegistryUnknown,
    UpstreamCut,
    UpstreamInvalid,
    UpstreamStalled,
    UpstreamUnreachable,
)
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.storage.memory import MemoryStore
from mirror.storage.partial import Partial
from tests.support.patience import PATIENCE

MIB = 1024 * 1024
CHUNK = 64 * 1024


class Source:
    """A blob as one registry has it. `gate` must be set for bytes from `gated` on to come in a stream that began before them."""

    connections = 1
    ranges = True
    single = throttled = capped = False
    least = 1

    def attend(self, wanted: bool) -> None: ...

    def __init__(
        self,
        data: bytes,
        gated: int | None = None,
        error: MirrorError | None = None,
        cut: int | None = None,
        *,
        silent: bool = False,
    ) -> None:
        """`error` is raised by `open`; every stream breaks off at `cut`. A `silent` one answers `open` once `answers` is set."""
        self.answers = asyncio.Event()
        if not silent:
            self.answers.set()
        self.failed = asyncio.Event()
        self.data = data
        self.cut = cut
        self.gated = len(data) if gated is None else gated
        self.gate = asyncio.Event()
        self.error = error
        self.opened: list[tuple[int, int | None]] = []
        self.described = 0
        self.wanted: dict[int, int] = {}
        """The offset up to which bytes were wanted of a stream by its last read, by the stream's start."""

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        self.opened.append((start, stop))
        await self.answers.wait()
        if self.error is not None:
            self.failed.set()
            raise self.error
        return Stream(self, start, len(self.data) if stop is None else stop)

    async def describe(self) -> Descriptor:
        self.described += 1
        if self.error is not None:
            raise self.error
        return Descriptor("application/octet-stream", Digest.of(self.data), len(self.data))

    def reject(self) -> bool:
        return False


class Stream:
    """What `Source.open` gives."""

    endpoint = "memory"

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.size: int | None = len(source.data)
        self.start = start
        self._source = source
        self._position = start
        self._stop = stop

    async def read(self, wanted: int) -> bytes:
        if self._source.cut is not None and self._position >= self._source.cut:
            raise UpstreamCut("cut")
        self._source.wanted[self.start] = self._position + wanted
        if self.start < self._source.gated <= self._position < self._stop:
            await self._source.gate.wait()
        data = self._source.data[self._position : min(self._position + CHUNK, self._stop)]
        self._position += len(data)
        await asyncio.sleep(0)
        return data

    async def aclose(self) -> None:
        pass


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore(64 * MIB) as made:
        yield made


@pytest.fixture
async def flights(store: MemoryStore) -> AsyncIterator[Flights]:
    made = Flights(store, unknown)
    yield made
    await made.aclose()


def unknown(repository: Repository, digest: Digest) -> DownloadContext:
    """For tests in which no other process names a repository."""
    raise RegistryUnknown.named(repository.registry)


def context(source: Source, registry: str = "one.example") -> DownloadContext:
    return DownloadContext(Repository(registry, "app"), source, {})


async def reader(flights: Flights, digest: Digest, asked: DownloadContext) -> FlightReader:
    """An open reader."""
    made = FlightReader(flights, digest, asked)
    await made.open()
    return made


async def asked_for(source: Source) -> None:
    """Waits until the blob is opened at a registry."""
    while not source.opened:
        await asyncio.sleep(0.001)


async def read(made: FlightReader, start: int = 0, stop: int | None = None) -> bytes:
    """What a client of it gets. Raises what cuts it short."""
    body = b""
    try:
        async for part in made.parts(start, made.size if stop is None else stop):
            assert isinstance(part, bytes)
            body += part
    finally:
        await made.aclose()
    return body


async def test_what_is_read_is_kept(store: MemoryStore, flights: Flights) -> None:
    """Each byte is fetched once, by one request."""
    source = Source(os.urandom(3 * MIB))
    digest = Digest.of(source.data)
    flight, joined = flights.join(digest, context(source))
    assert not joined
    assert await read(await reader(flights, flight.digest, context(source))) == source.data
    await flights.ended(flight)
    assert store.size(digest) == 3 * MIB
    assert (source.opened, source.described) == ([(0, None)], 0)


async def test_what_another_connection_fetches_is_not_received_twice(flights: Flights) -> None:
    """A connection whose last part was taken over receives what is left to it, and no byte more."""
    source = Source(os.urandom(20 * MIB), gated=MIB)
    digest = Digest.of(source.data)
    whole = asyncio.create_task(read(await reader(flights, digest, context(source))))
    far = 12 * MIB
    assert await read(await reader(flights, digest, context(source)), far, 20 * MIB) == source.data[far:]
    source.gate.set()
    assert await whole == source.data
    assert source.opened == [(0, None), (far, 20 * MIB)]
    assert source.wanted == {0: far, far: 20 * MIB}


async def test_the_last_bytes_of_a_range_are_not_withheld(flights: Flights) -> None:
    """Those of the whole are, until the digest is verified."""
    source = Source(os.urandom(MIB), gated=MIB - 10)
    source.gated = MIB // 2
    flight, _ = flights.join(Digest.of(source.data), context(source))
    ranged, whole = await reader(flights, flight.digest, context(source)), await reader(flights, flight.digest, context(source))
    assert await read(ranged, MIB // 2 - 1000, MIB // 2) == source.data[MIB // 2 - 1000 : MIB // 2]
    source.gate.set()
    assert await read(whole) == source.data


async def test_a_download_that_hardly_moves_ends_and_is_gone_on_with(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads it: it is given up; what has come is kept, and the next one fetches the rest only."""
    monkeypatch.setattr(planner, "WINDOW_UNREAD", 0.2)
    source = Source(os.urandom(3 * MIB), gated=MIB)
    digest = Digest.of(source.data)
    flight, _ = flights.join(digest, context(source))
    await flights.ended(flight)
    assert isinstance(flight.error, UpstreamStalled)
    source.gate.set()
    flight, joined = flights.join(digest, context(source))
    assert not joined
    assert await read(await reader(flights, flight.digest, context(source))) == source.data
    assert source.opened == [(0, None), (MIB, 3 * MIB)]


async def test_a_download_that_is_read_is_given_more_time(flights: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readers are cut short when it is given up as well."""
    monkeypatch.setattr(planner, "WINDOW_READ", 0.5)
    monkeypatch.setattr(planner, "WINDOW_UNREAD", 0.0)
    source = Source(os.urandom(3 * MIB), gated=MIB)
    flight, _ = flights.join(Digest.of(source.data), context(source))
    with pytest.raises(UpstreamStalled):
        await read(await reader(flights, flight.digest, context(source)))


async def test_a_second_registry_is_asked_for_its_word_and_then_for_the_bytes(flights: Flights) -> None:
    """By one HEAD; its bytes are fetched where the first one's do not come."""
    slow, healthy = Source(os.urandom(MIB), gated=CHUNK), Source(b"")
    healthy.data, healthy.gated = slow.data, MIB
    digest = Digest.of(slow.data)
    flight, _ = flights.join(digest, context(slow))
    first = asyncio.create_task(read(await reader(flights, flight.digest, context(slow))))
    second = await reader(flights, flight.digest, context(healthy, "two.example"))
    assert (await read(second), await first) == (slow.data, slow.data)
    assert healthy.described == 1
    assert healthy.opened == [(CHUNK, MIB)]
    assert slow.opened == [(0, None)]


async def test_a_size_that_is_disproved_ends_the_download_that_went_by_it(store: MemoryStore, flights: Flights) -> None:
    """Readers of the registry that disagrees share a download of their own; once that is verified, it is kept, and the other has ended."""
    data = os.urandom(MIB)
    liar, honest = Source(data + b"more", gated=CHUNK), Source(data)
    digest = Digest.of(data)
    theirs = asyncio.create_task(read(await reader(flights, digest, context(liar))))
    asked = context(honest, "two.example")
    readers = [await reader(flights, digest, asked) for _ in range(3)]
    assert len({made.flight for made in readers}) == 1
    assert await asyncio.gather(*map(read, readers)) == [data] * 3
    with pytest.raises(UpstreamInvalid):
        await theirs
    await flights.ended(readers[0].flight)
    assert store.size(digest) == MIB
    assert (honest.described, len(honest.opened)) == (1, 1)


async def test_a_refusal_is_told_to_its_own_readers(flights: Flights) -> None:
    """The download of another registry goes on."""
    source = Source(os.urandom(MIB), gated=CHUNK)
    refusing = Source(b"", error=BlobUnknown("not here"))
    flight, _ = flights.join(Digest.of(source.data), context(source))
    whole = asyncio.create_task(read(await reader(flights, flight.digest, context(source))))
    with pytest.raises(BlobUnknown):
        await reader(flights, flight.digest, context(refusing, "two.example"))
    source.gate.set()
    assert await whole == source.data
    assert (refusing.described, refusing.opened) == (1, [])


async def test_a_process_that_does_not_bring_another_registrys_download_on_is_not_waited_for(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped, or knows nothing of this registry: the readers here share one download of their own, however many they are."""
    monkeypatch.setattr(following, "SLOW_AFTER", 0.2)
    source = Source(os.urandom(MIB))
    digest = Digest.of(source.data)
    held = store.partial(digest)
    assert held.lead()
    held.announce(Repository("two.example", "app"))
    await held.set_size(MIB)
    flight, _ = flights.join(digest, context(source))
    readers = [await reader(flights, flight.digest, context(source)) for _ in range(3)]
    assert await asyncio.gather(*map(read, readers)) == [source.data] * 3
    assert (source.described, source.opened) == (1, [(0, None)])
    assert held.take_sources() == [(Repository("one.example", "app"), MIB, True)]
    held.close()


async def test_a_process_that_a_cap_makes_slow_is_waited_for(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it downloads from: a second download would use the same capped rate."""
    monkeypatch.setattr(following, "SLOW_AFTER", 0.0)
    source = Source(os.urandom(MIB))
    source.capped = True
    held = store.partial(Digest.of(source.data))
    assert held.lead()
    held.announce(Repository("two.example", "app"))
    await held.set_size(MIB)
    reading = asyncio.create_task(read(await reader(flights, held.digest, context(source))))
    for offset in range(0, MIB, CHUNK):
        await held.write(offset, source.data[offset : offset + CHUNK])
        await asyncio.sleep(0.03)
    assert source.opened == []
    held.close()
    assert await reading == source.data


async def test_a_process_that_brings_the_same_registrys_download_on_slowly_is_waited_for(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another connection to the same registry would only make it slower."""
    monkeypatch.setattr(following, "SLOW_AFTER", 0.0)
    source = Source(os.urandom(MIB))
    held = store.partial(Digest.of(source.data))
    assert held.lead()
    asked = context(source)
    held.announce(asked.repository)
    await held.set_size(MIB)
    held.add_source(asked.repository, MIB, told=True)
    flight, _ = flights.join(held.digest, asked)
    reading = asyncio.create_task(read(await reader(flights, flight.digest, asked)))
    for offset in range(0, MIB, CHUNK):
        await held.write(offset, source.data[offset : offset + CHUNK])
        await asyncio.sleep(0.03)
    assert (source.described, source.opened) == (0, [])
    await held.commit()
    assert await reading == source.data
    held.close()


async def test_a_download_that_other_processes_give_up_again_and_again_is_not_waited_for(
    store: MemoryStore, flights: Flights
) -> None:
    """Their registry fails; what this one has is downloaded separately."""
    source = Source(os.urandom(MIB))
    digest = Digest.of(source.data)

    def lead() -> Partial:
        made = store.partial(digest)
        assert made.lead()
        made.announce(Repository("two.example", "app"))
        return made

    leaders = [lead()]
    flight, _ = flights.join(digest, context(source))
    reading = asyncio.create_task(read(await reader(flights, flight.digest, context(source))))
    while not source.opened:
        # At once, so that nobody else has the lead between.
        leaders[-1].discard()
        leaders.append(lead())
        await asyncio.sleep(0.05)
    assert await reading == source.data
    assert (source.described, source.opened) == (1, [(0, None)])
    for leader in leaders:
        leader.close()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_process_that_is_stopped_is_not_waited_for(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """It downloads from the same repository, and brings nothing any more: the readers here share one download of their own."""
    monkeypatch.setattr(following, "STOPPED_AFTER", 0.2)
    source = Source(os.urandom(MIB))
    asked = context(source)
    stopped = store.partial(Digest.of(source.data))
    assert stopped.lead()
    stopped.announce(asked.repository)
    if answered:
        await stopped.set_size(MIB)
        stopped.add_source(asked.repository, MIB, told=True)
    flight, _ = flights.join(stopped.digest, asked)
    parts = await asyncio.gather(*(reader(flights, flight.digest, asked) for _ in range(3)))
    assert await asyncio.gather(*map(read, parts)) == [source.data] * 3
    assert (source.described, source.opened) == (0 if answered else 1, [(0, None)])
    stopped.close()


async def test_a_process_that_is_stopped_before_it_has_verified_is_not_waited_for(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes are here: who has read them gets the last ones, which are withheld, from upstream."""
    monkeypatch.setattr(following, "STOPPED_AFTER", 0.2)
    source = Source(os.urandom(MIB))
    asked = context(source)
    stopped = store.partial(Digest.of(source.data))
    assert stopped.lead()
    stopped.announce(asked.repository)
    await stopped.set_size(MIB)
    stopped.add_source(asked.repository, MIB, told=True)
    await stopped.write(0, source.data)
    flight, _ = flights.join(stopped.digest, asked)
    assert await read(await reader(flights, flight.digest, asked)) == source.data
    await flights.ended(flight)
    assert store.size(stopped.digest) == MIB
    assert sorted(source.opened) == [(0, None), (MIB - WITHHELD, MIB)]
    stopped.close()


@pytest.mark.parametrize("told", [True, False])
async def test_only_the_registrys_own_word_says_that_a_repository_has_a_blob(
    store: MemoryStore, flights: Flights, told: bool
) -> None:
    """A process that leads has it of the registry, or of another mirror, which has it for other repositories too: to one that follows, and has not asked, it is
    the same. And the other way round: one that follows names a repository to one that leads."""
    source = Source(os.urandom(MIB))
    asked, theirs = context(source), context(source, "two.example")
    leading = store.partial(Digest.of(source.data))
    assert leading.lead()
    leading.announce(asked.repository)
    await leading.set_size(MIB)
    leading.add_source(asked.repository, MIB, told=told)
    following = await reader(flights, leading.digest, asked)
    assert (following.told, source.described, source.opened) == (told, 0, [])
    await leading.write(0, source.data)
    leading.release()
    # It takes over, and is told meanwhile of another repository. Its own registry is asked for nothing: all bytes are here.
    flight, _ = flights.join(leading.digest, asked)
    flight.suppliers.join(theirs)[0].hear(MIB, told)
    assert await read(following) == source.data
    await flights.ended(flight)
    assert await store.told_holders(leading.digest) == ({asked.repository, theirs.repository} if told else set())
    leading.close()


async def test_a_registry_that_breaks_off_is_not_asked_again_before_the_others(flights: Flights) -> None:
    """What it has brought counts, and the next registry brings the rest at once."""
    healthy = Source(os.urandom(MIB))
    breaking = Source(healthy.data, gated=CHUNK, cut=2 * CHUNK)
    flight, _ = flights.join(Digest.of(healthy.data), context(breaking))
    first = asyncio.create_task(read(await reader(flights, flight.digest, context(breaking))))
    second = await reader(flights, flight.digest, context(healthy, "two.example"))
    breaking.gate.set()
    assert (await read(second), await first) == (healthy.data, healthy.data)
    assert breaking.opened == [(0, None)]
    assert healthy.opened == [(2 * CHUNK, MIB)]


async def test_a_registry_that_failed_once_is_asked_again_before_one_that_fails_again(flights: Flights) -> None:
    """The first one breaks off again and again, after some progress each time: it does not hold the download for ever."""
    healthy = Source(os.urandom(MIB), error=UpstreamUnreachable("too busy to answer"))
    breaking = Source(healthy.data, gated=CHUNK, cut=2 * CHUNK)
    digest = Digest.of(healthy.data)
    first = asyncio.create_task(read(await reader(flights, digest, context(breaking))))
    asked = context(healthy, "two.example")
    healthy.error, error = None, healthy.error
    second = await reader(flights, digest, asked)
    healthy.error = error
    breaking.gate.set()
    await asked_for(healthy)
    healthy.error, breaking.cut = None, 3 * CHUNK
    assert (await read(second), await first) == (healthy.data, healthy.data)
    assert healthy.opened[-1][0] <= 3 * CHUNK
    assert len(breaking.opened) <= 2


async def test_a_registry_that_does_not_answer_is_not_replaced_twice(flights: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is fetching the bytes by then, and is asked for them once."""
    monkeypatch.setattr(planner, "_INTERVAL", 0.0)
    healthy = Source(os.urandom(MIB), gated=CHUNK)
    silent = Source(healthy.data, error=UpstreamUnreachable("no answer in time"), silent=True)
    digest = Digest.of(healthy.data)
    first = asyncio.create_task(reader(flights, digest, context(silent)))
    await asked_for(silent)
    second = await reader(flights, digest, context(healthy, "two.example"))
    reading = asyncio.create_task(read(second))
    await asked_for(healthy)
    silent.answers.set()
    await silent.failed.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    healthy.gate.set()
    assert await reading == healthy.data
    assert healthy.opened == [(0, None)]
    with pytest.raises(UpstreamUnreachable):
        await first


@pytest.mark.parametrize("more", [b"", b"more"])
async def test_what_a_reader_gets_of_a_download_in_the_wrong_size_is_kept(
    store: MemoryStore, flights: Flights, more: bytes
) -> None:
    """The registry that was asked first answers, with another size, when the reader of another one knows its size already."""
    data = os.urandom(MIB)
    liar, honest = Source(data[:-10] + more, silent=True), Source(data)
    digest = Digest.of(data)
    theirs = asyncio.create_task(reader(flights, digest, context(liar)))
    await asked_for(liar)
    ours = await reader(flights, digest, context(honest, "two.example"))
    liar.answers.set()
    assert await read(ours) == data
    await flights.ended(ours.flight)
    assert store.size(digest) == MIB
    assert (honest.described, honest.opened) == (1, [(0, None)])
    with pytest.raises(UpstreamInvalid):
        await read(await theirs)


async def test_a_pull_does_not_fail_for_what_another_registry_says(store: MemoryStore, flights: Flights) -> None:
    """It goes on with a download of the size that its own registry states."""
    data = os.urandom(MIB)
    liar, honest = Source(data + b"more", gated=CHUNK, silent=True), Source(data)
    digest = Digest.of(data)
    theirs = asyncio.create_task(reader(flights, digest, context(liar)))
    await asked_for(liar)
    ours = await reader(flights, digest, context(honest, "two.example"))
    liar.answers.set()
    theirs_opened = await theirs
    while not await ours.ended(0.01):
        pass
    await ours.aclose()
    assert store.size(digest) == MIB
    assert (honest.described, honest.opened) == (1, [(0, None)])
    with pytest.raises(UpstreamInvalid):
        await read(theirs_opened)


async def test_readers_in_another_process_have_headers_as_soon_as_upstream_has_answered(
    store: MemoryStore, flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not wait until the process that leads has something else to exchange."""
    for tick in ("_TICK", "_SLOW_TICK"):
        monkeypatch.setattr(filling, tick, 3600.0)
    source = Source(os.urandom(MIB), gated=CHUNK)
    digest, asked, elsewhere = Digest.of(source.data), context(source), Flights(store, unknown)
    first = asyncio.create_task(read(await reader(flights, digest, asked)))
    second = await asyncio.wait_for(reader(elsewhere, digest, asked), PATIENCE)
    assert second.size == MIB
    source.gate.set()
    assert (await read(second), await first) == (source.data, source.data)
    assert (source.described, source.opened) == (0, [(0, None)])
    await elsewhere.aclose()
