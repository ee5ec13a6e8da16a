"""What nine bad endpoints of ten cost: ``python -m benchmarks.endpoints``.

Images of four layers, each in a repository of its own, are pulled through a mirror whose only endpoint is good, and through one for which that endpoint is the
ninth of ten. The good one sends 5 MB/s on each connection. What counts is the first pull ever, and the median of later ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp

from mirror import app
from mirror.config import load
from tests.support.endpoints import black_hole, fleet
from tests.support.scripted import Corrupt, Delay, Fault, Image, Scripted, Status

_PULLS = 9
_LAYERS, _SIZE, _RATE = 4, 500_000, 5_000_000


async def measure(endpoints: list[str], images: list[Image]) -> tuple[float, float]:
    """Returns the seconds of the first pull, and the median of the others."""
    with tempfile.TemporaryDirectory() as folder:
        tree = {
            "server": {"listen": "127.0.0.1:0", "access_log": False, "drain_timeout": 1},
            "cache": {"dir": str(Path(folder) / "cache")},
            "registries": {"docker.io": {"endpoints": endpoints}},
        }
        async with app.running(load(None, {}, tree)) as url, aiohttp.ClientSession(url) as session:
            seconds = [await _pull(session, number, image) for number, image in enumerate(images)]
    return seconds[0], statistics.median(seconds[1:])


async def _pull(session: aiohttp.ClientSession, number: int, image: Image) -> float:
    """Asks as dockerd does: the tag, the manifest, and then three blobs at a time. What is cut off is resumed."""
    turns = asyncio.Semaphore(3)

    async def get(path: str, method: str = "GET") -> None:
        got = 0
        async with turns:
            for _ in range(6):
                headers = {"Range": f"bytes={got}-"} if got else {}
                async with session.request(method, f"/v2/library/app{number}/{path}", headers=headers) as answer:
                    assert answer.status in (200, 206), (path, await answer.text())
                    try:
                        while data := await answer.content.readany():
                            got += len(data)
                        return
                    except aiohttp.ClientPayloadError:
                        # It was fetched from an endpoint that sends wrong bytes, whose last ones are withheld.
                        continue
        raise AssertionError(f"{path} is cut off again and again")

    began = time.monotonic()
    await get("manifests/latest", "HEAD")
    await get(f"manifests/{image.digest}")
    await asyncio.gather(*(get(f"blobs/{digest}") for digest in (image.config, *image.layers)))
    return time.monotonic() - began


def _add_images(good: Scripted) -> list[Image]:
    good.rate = _RATE
    return [
        good.add_image(f"library/app{number}", "latest", layers=[os.urandom(_SIZE) for _ in range(_LAYERS)])
        for number in range(_PULLS + 1)
    ]


@contextlib.asynccontextmanager
async def _mixed() -> AsyncIterator[tuple[Scripted, list[str]]]:
    """A dead one, one that swallows connections, and a slow one, a page, an allow-list, wrong bytes, a limit, a log-in page, old tags."""
    async with fleet() as found:
        found.bad["wrong"].manifests, found.bad["wrong"].blobs = found.good.manifests, found.good.blobs
        for number in range(_PULLS + 1):
            found.bad["stale"].add_image(f"library/app{number}", "latest")
        yield found.good, found.urls


@contextlib.asynccontextmanager
async def _swallowing() -> AsyncIterator[tuple[Scripted, list[str]]]:
    """Nine to which no connection can be made, and which refuse none."""
    async with Scripted() as good:
        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(black_hole()) for _ in range(9)]
            yield good, [*urls[:8], good.url, urls[8]]


def _alike(fault: Fault) -> Callable[[], contextlib.AbstractAsyncContextManager[tuple[Scripted, list[str]]]]:
    """Nine with one fault, which have all images."""

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[tuple[Scripted, list[str]]]:
        async with contextlib.AsyncExitStack() as stack:
            good = await stack.enter_async_context(Scripted())
            bad = [await stack.enter_async_context(Scripted()) for _ in range(9)]
            for one in bad:
                one.manifests, one.blobs = good.manifests, good.blobs
                one.fail("/v2/", fault, times=100_000, method="*")
            yield good, [*(one.url for one in bad[:8]), good.url, bad[8].url]

    return running


_FLEETS = {
    "are bad in nine ways": _mixed,
    "swallow connections": _swallowing,
    "answer after 3 s": _alike(Delay(3)),
    "send wrong bytes": _alike(Corrupt(0)),
    "answer 500": _alike(Status(500)),
}


async def _compare(name: str) -> None:
    async with _FLEETS[name]() as (good, urls):
        images = _add_images(good)
        first_alone, alone = await measure([good.url], images)
        first, later = await measure(urls, images)
    print(
        f"nine that {name}: first pull {first:.2f} s, {first - first_alone:.2f} s more than alone (bar 6); "
        f"later {later:.3f} s, {later / alone:.2f} times alone (bar 1.2)",
        flush=True,
    )


def main() -> None:
    """Prints a line for each kind of fleet."""
    # The scripted endpoints log each connection that was given up.
    logging.disable(logging.CRITICAL)
    for name in _FLEETS:
        asyncio.run(_compare(name))


if __name__ == "__main__":
    main()
