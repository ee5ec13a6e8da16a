"""Several imports of the same blobs at once, in one process or several: each blob is written once, and all imports end with everything there."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.bundles.archive import ArchiveInvalid
from mirror.bundles.importing import Import, Importer, Wishes
from mirror.bundles.sources import Files, Pipe, Source
from mirror.names import Digest, Tag
from mirror.storage.disk.store import DiskStore
from mirror.storage.memory import MemoryStore
from mirror.storage.settings import Upkeep
from mirror.storage.store import Store
from tests.bundles.test_archives import APP, NAME, parse
from tests.support.archives import docker_save, layout_of, pack
from tests.support.images import make_image
from tests.support.mirrors import until

IMAGE = make_image(1, size=400_000)
LAYOUT = pack(layout_of({NAME: IMAGE}))
SAVED = pack(*docker_save(NAME, IMAGE))
LAYER = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))
BEGIN = LAYOUT.index(IMAGE.blobs[LAYER]) + 100_000
"""In the middle of its largest layer."""


@pytest.fixture(params=["one store", "two processes", "memory"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """The stores of two imports. Two that opened one directory exclude each other as those of two processes do."""
    async with contextlib.AsyncExitStack() as stack:
        made: list[Store] = [
            MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "cache", Upkeep(10**9))
            for _ in range(2 if request.param == "two processes" else 1)
        ]
        for store in made:
            await stack.enter_async_context(store)
        yield made[0], made[-1]


async def imported(store: Store, source: Source) -> Import:
    this = Import(source, Wishes(parse))
    with contextlib.closing(source), contextlib.closing(Importer(store)) as importer:
        await importer.run(this)
    return this


def source_of(path: Path, way: str) -> Source:
    return Files([path]) if way == "file" else Pipe(io.FileIO(path))


class HeldPipe:
    """A pipe with the first bytes of an archive; the rest comes, or never, when `go_on` or `cut` is called."""

    def __init__(self, data: bytes, begin: int) -> None:
        reading, self._fd = os.pipe()
        self._rest = data[begin:]
        self.source = Pipe(io.FileIO(reading))
        self._begin = data[:begin]

    async def begin(self) -> None:
        await asyncio.to_thread(self._write, self._begin)

    async def go_on(self) -> None:
        await asyncio.to_thread(self._write, self._rest)
        self.cut()

    def cut(self) -> None:
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


async def begun(stores: tuple[Store, Store], tmp_path: Path) -> tuple[HeldPipe, asyncio.Task[Import]]:
    """An import that is in the middle of the largest layer."""

    def is_written() -> bool:
        if isinstance(stores[0], MemoryStore):
            return any(digest == Digest.parse(LAYER) for digest, _ in stores[0].downloads)
        return any(LAYER.partition(":")[2] in path.name for path in (tmp_path / "cache" / "spool").iterdir())

    held = HeldPipe(LAYOUT, BEGIN)
    task = asyncio.create_task(imported(stores[0], held.source))
    await held.begin()
    await until(is_written)
    return held, task


async def complete(store: Store) -> bool:
    sizes = [store.size(Digest.parse(blob)) for blob in IMAGE.blobs]
    return None not in sizes and await store.tag(APP, Tag("1")) is not None


@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_the_second_import_waits_for_the_first(
    stores: tuple[Store, Store], tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says that it waits, brings what the first has not begun, and reports the image as complete; no byte is written twice."""
    held, first = await begun(stores, tmp_path)
    (tmp_path / "lab.tar").write_bytes(LAYOUT)
    second = asyncio.create_task(imported(stores[1], source_of(tmp_path / "lab.tar", way)))
    await until(lambda: "is being imported by another" in caplog.text)
    assert not second.done()
    await held.go_on()
    done = [await first, await second]
    assert [[(str(image), image.fault, image.lacking) for image in this.images] for this in done] == [[(NAME, "", ())]] * 2
    assert Digest.parse(LAYER) in done[0].came
    assert done[0].came.keys() & done[1].came.keys() == set()
    assert await complete(stores[1])


async def test_the_second_takes_over_where_the_first_breaks_off(
    stores: tuple[Store, Store], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ends with an error; the second, which waited, writes the blob from its own archive."""
    held, first = await begun(stores, tmp_path)
    (tmp_path / "lab.tar").write_bytes(LAYOUT)
    second = asyncio.create_task(imported(stores[1], Files([tmp_path / "lab.tar"])))
    await until(lambda: "is being imported by another" in caplog.text)
    held.cut()
    with pytest.raises(ArchiveInvalid, match="cut off"):
        await first
    this = await second
    assert Digest.parse(LAYER) in this.came
    assert [image.fault for image in this.images] == [""]
    assert await complete(stores[1])


@pytest.mark.parametrize("data", [LAYOUT, SAVED], ids=["layout", "docker save"])
async def test_many_at_once(stores: tuple[Store, Store], tmp_path: Path, data: bytes) -> None:
    """Files and pipes side by side, also of an archive whose files do not have their digests in their names."""
    path = tmp_path / "lab.tar"
    path.write_bytes(data)
    sources = [source_of(path, ("file", "pipe")[number % 2]) for number in range(6)]
    done = await asyncio.gather(*(imported(stores[number % 2], source) for number, source in enumerate(sources)))
    assert {image.fault for this in done for image in this.images} == {""}
    brought = [digest for this in done for digest in this.came]
    assert len(brought) == len(set(brought)) > 0
    if isinstance(stores[0], DiskStore):
        assert list((tmp_path / "cache" / "spool").iterdir()) == []
