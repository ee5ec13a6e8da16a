"""Under a cap on the rate, clients come before what the mirror fetches ahead (docs/upstreams.md), through a whole mirror."""

from __future__ import annotations

import asyncio
import os

import pytest

from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Scripted

RATE = 400_000
LAYER = RATE
"""Bytes of a layer that is fetched ahead. A fifth of it may be in the kernel when a client comes."""
WANTED = 3 * RATE
"""Bytes that clients then ask for."""


@pytest.fixture
async def mirror(start: StartMirror) -> Mirror:
    """It fetches layers ahead, at a low rate. A turn that is waited for longer than `stall_timeout` is no stall."""
    started: Mirror = await start(settings={"upstream": {"max_rate": RATE, "stall_timeout": "500ms"}}, prefetch=True)
    return started


async def prefetching(mirror: Mirror, upstream: Scripted) -> list[Digest]:
    """Pulls the small first layer of an image, and returns the four large ones once all of them are being fetched ahead."""
    image = upstream.add_image("library/app", "latest", [os.urandom(1000), *(os.urandom(LAYER) for _ in range(4))])
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    ahead = list(image.layers[1:])
    await until(lambda: all(upstream.count("GET", str(layer)) for layer in ahead))
    return ahead


async def pulled(mirror: Mirror) -> float:
    """The bytes that have come from upstream."""
    return await mirror.metric("registry_proxy_pulled_bytes_total")


def path(digest: Digest) -> str:
    return f"/v2/app/blobs/{digest}"


async def test_a_clients_blob_comes_before_four_that_are_fetched_ahead(mirror: Mirror, upstream: Scripted) -> None:
    """With equal shares all of them would have come in before it. They get what had arrived, and little more. Afterwards they come in too."""
    ahead = await prefetching(mirror, upstream)
    wanted = upstream.add_blob(os.urandom(WANTED))
    before = await pulled(mirror)
    assert (await mirror.get(path(wanted))).digest() == wanted
    assert await pulled(mirror) - before < 1.4 * WANTED
    assert not any(mirror.cached(layer) for layer in ahead)
    for layer in ahead:
        await mirror.until_cached(layer)
    assert [upstream.count("GET", str(layer)) for layer in (wanted, *ahead)] == [1] * 5


async def test_clients_share_the_rate_equally_beside_what_is_fetched_ahead(mirror: Mirror, upstream: Scripted) -> None:
    """Three clients' blobs end at about the same time: when the first has ended, the others have nearly all of theirs."""
    await prefetching(mirror, upstream)
    wanted = [upstream.add_blob(os.urandom(WANTED // 3)) for _ in range(3)]
    before = await pulled(mirror)
    pulls = [asyncio.create_task(mirror.get(path(digest))) for digest in wanted]
    await asyncio.wait(pulls, return_when=asyncio.FIRST_COMPLETED)
    assert await pulled(mirror) - before > 0.75 * WANTED
    assert [(await pull).digest() for pull in pulls] == wanted
    assert await pulled(mirror) - before < 1.4 * WANTED
    assert [upstream.count("GET", str(digest)) for digest in wanted] == [1] * 3


async def test_a_layer_fetched_ahead_goes_to_the_front_when_a_client_asks_for_it(mirror: Mirror, upstream: Scripted) -> None:
    """The client joins its download, which ends before the others have a half of their bytes. Upstream is asked once for each."""
    first, *others = await prefetching(mirror, upstream)
    before = await pulled(mirror)
    assert (await mirror.get(path(first))).digest() == first
    assert await pulled(mirror) - before < LAYER + 0.5 * 3 * LAYER
    assert not any(mirror.cached(layer) for layer in others)
    for layer in others:
        await mirror.until_cached(layer)
    assert [upstream.count("GET", str(layer)) for layer in (first, *others)] == [1] * 4
