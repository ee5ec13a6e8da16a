"""``[[warm]]`` lists whose files cannot be read, or that fail in a way that nobody has foreseen."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.cache.warming import Images, Warming, WarmList
from mirror.config.warm import Warm
from mirror.names import Repository, Tag
from mirror.storage.memory import MemoryStore
from tests.support.mirrors import until

ONE: Images = [(Repository("docker.io", "library/one"), Tag("1"))]
TWO: Images = [(Repository("docker.io", "library/two"), Tag("1"))]
UNEXPECTED = "an unexpected error: see the log"


class _Pulls:
    """Fails as a fault in this program would, or succeeds and fetches nothing."""

    def __init__(self) -> None:
        self.broken = False
        self.asked: list[str] = []

    async def pull(self, this: Any) -> None:
        self.asked.append(str(this))
        if self.broken:
            raise RuntimeError("nobody has foreseen this")

    async def why_missing(self, this: Any) -> str:
        return ""


def listing(name: str, read: Any) -> WarmList:
    return WarmList(name, read, None, 3600, None)


async def test_an_unexpected_exception_while_a_list_is_read_takes_nothing_away(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback and shown; the list's images stay pinned, other lists are pulled, and the list has a way back."""
    images: Any = ONE

    def read() -> Images:
        if isinstance(images, Exception):
            raise images
        return list(images)

    pulls: Any = _Pulls()
    lists: Any = None
    async with MemoryStore() as store:
        warming = Warming(store, pulls, lists, lambda: False)
        warming.take([listing("lab", read)])
        warming.start()
        try:

            async def listed() -> set[str]:
                return {f"{image.list} {image.repository.path}" for image in await store.listed()}

            async def problems() -> list[str]:
                return [state.problem for state in await warming.state()]

            async def reaches(lab: set[str], told: list[str]) -> None:
                async with asyncio.timeout(10):
                    while (await listed(), await problems()) != (lab, told):
                        await asyncio.sleep(0.01)

            await reaches({"lab library/one"}, [""])
            images = RuntimeError("nobody has foreseen this")
            warming.take([listing("lab", read), listing("other", lambda: TWO)])
            await reaches({"lab library/one", "other library/two"}, [UNEXPECTED, ""])
            await until(lambda: "docker.io/library/two:1" in pulls.asked)
            assert "nobody has foreseen this" in caplog.text
            images = TWO
            warming.take([listing("lab", read)])
            await reaches({"lab library/two"}, [""])
        finally:
            await warming.aclose()


async def test_an_unexpected_exception_while_an_image_is_pulled_is_a_failed_pull(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback; the image stays in the list, and the next try is due like that of any other failure."""
    pulls: Any = _Pulls()
    pulls.broken = True
    lists: Any = None
    this = listing("lab", lambda: ONE)
    async with MemoryStore() as store:
        warming = Warming(store, pulls, lists, lambda: False)
        warming.take([this])
        warming.start()
        try:
            async with asyncio.timeout(10):
                while not ((images := await store.listed()) and images[0].fault):
                    await asyncio.sleep(0.01)
        finally:
            await warming.aclose()
    (image,) = images
    assert (image.fault, image.failures, image.ran) == (UNEXPECTED, 1, None)
    assert image.tried is not None
    assert this.due(image) == image.tried + 60
    assert pulls.asked == ["docker.io/library/one:1"]
    assert "nobody has foreseen this" in caplog.text


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter; the ones of pytest are root's alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("kind", ["file", "compose", "kubernetes"])
def test_a_file_without_permission_is_an_error_that_names_it(folder: Path, kind: str) -> None:
    """For all kinds, so that the list stays as it was. It can be read again once it may be."""
    texts = {
        "file": "one:1\n",
        "compose": "services:\n  app:\n    image: one:1\n",
        "kubernetes": "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: one:1\n",
    }
    file = folder / {"file": "lab.txt", "compose": "compose.yaml", "kubernetes": "pod.yaml"}[kind]
    file.write_text(texts[kind])
    file.chmod(0)
    tables: Any = {"name": "lab", kind: file}
    warm = Warm(**tables)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match="Permission denied") as caught:
            warm.read()
    finally:
        os.seteuid(user)
    assert str(file) in str(caught.value)
    file.chmod(0o644)
    assert warm.read() == ONE
