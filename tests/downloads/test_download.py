"""One connection after the other for one stretch of a blob."""

from __future__ import annotations

import pytest

from mirror.downloads import download as module
from mirror.downloads.download import Download
from mirror.errors import UpstreamCut
from mirror.manifests import Descriptor

SIZE = 1024 * 1024


class Cuts:
    """A source whose connections end early: each after the next of some numbers of bytes."""

    connections, ranges, single, least, throttled, capped = 1, True, False, 1, False, False

    def attend(self, wanted: bool) -> None: ...

    def __init__(self, *counts: int) -> None:
        self._counts = iter(counts)
        self.starts: list[int] = []

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        self.starts.append(start)
        return Stream(start, next(self._counts, SIZE))

    async def describe(self) -> Descriptor:
        raise AssertionError

    def reject(self) -> bool:
        raise AssertionError


class Stream:
    endpoint = "upstream"

    def __init__(self, start: int, count: int) -> None:
        self.size: int | None = SIZE
        self.start = start
        self._left = min(count, SIZE - start)
        self._cut = start + count < SIZE

    async def read(self, wanted: int) -> bytes:
        count, self._left = min(self._left, 64 * 1024), max(self._left - 64 * 1024, 0)
        if not count and self._cut:
            raise UpstreamCut("cut")
        return bytes(count)

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("counts", "pauses"),
    [
        ([], []),
        ([200_000, 100_000, 65_536], []),
        ([0, 0, 0], [0, 1, 2]),
        ([100, 0, 100], [0, 1, 2]),
        ([0, 200_000, 0, 0], [0, 0, 1]),
    ],
)
async def test_a_connection_that_was_cut_is_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], pauses: list[int]
) -> None:
    """A cut after progress costs no wait, since a link that cuts often would be idle for most of the time; failures in a row back off, from the first on."""
    waited: list[int] = []

    def pause(failures: int, retry_after: float | None = None) -> float:
        waited.append(failures)
        return 0.0

    monkeypatch.setattr(module, "pause", pause)
    source = Cuts(*counts)
    download = Download(source, size=SIZE)
    total = 0
    while data := await download.read():
        total += len(data)
    assert (total, waited, len(source.starts)) == (SIZE, pauses, len(counts) + 1)


async def test_what_the_cap_makes_slow_may_be_cut_any_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream closes connections that take little: each brings something, and none counts as the last that may fail. Those that bring nothing do."""
    monkeypatch.setattr(module, "pause", lambda failures, retry_after: 0.0)
    slow = Cuts(*[100] * 30)
    slow.throttled = True
    download = Download(slow, size=SIZE)
    while await download.read():
        pass
    assert (download.position, len(slow.starts)) == (SIZE, 31)
    dead = Cuts(*[0] * 30)
    dead.throttled = True
    with pytest.raises(UpstreamCut):
        await Download(dead, size=SIZE).read()
    assert len(dead.starts) == 6
