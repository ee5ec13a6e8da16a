"""Whether another mirror, or a bucket, lives."""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import UpstreamUnreachable
from mirror.upstream import Connections, Timeouts
from mirror.upstream.places import Place
from mirror.upstream.transport import Transport
from mirror.upstream.watch import Watch
from tests.support.mirrors import until
from tests.support.ports import free_port


async def test_whatever_comes_while_it_is_looked_at_shows_that_it_lives() -> None:
    """One that sends so much that it does not come to answer the look is not left. One from which nothing comes is, and what waits for it is told."""
    looks, changes = 0, list[bool]()

    async def look() -> bool:
        nonlocal looks
        looks += 1
        await asyncio.Event().wait()
        return True

    watch = Watch("the mirror", look, changes.append, patience=0.01, seconds=0.2)
    try:
        async with watch.waiting():
            for _ in range(40):
                async with watch.waiting():
                    await asyncio.sleep(0.02)
        assert (watch.alive, changes, looks) == (True, [], 1)
        with pytest.raises(UpstreamUnreachable):
            async with watch.waiting():
                await asyncio.Event().wait()
        assert changes == [False]
    finally:
        await watch.aclose()


async def test_offline_no_mirror_is_looked_at_nor_said_to_be_dead() -> None:
    """Whether it is back cannot be known: /readyz would say for ever that it does not answer. Nothing is sent to it."""
    transport = Transport(Timeouts(1, 1, 1, 1), Connections(1, 1, 1))
    place = Place(
        f"http://127.0.0.1:{free_port()}",
        "here",
        transport,
        lambda: None,
        is_peer=True,
        tls=None,
        way=None,
        limiter=transport.limiter,
    )
    try:
        place.watch.note_dead()
        assert not place.alive
        transport.offline = True
        await until(lambda: place.alive)
    finally:
        await place.aclose()
        await transport.aclose()
