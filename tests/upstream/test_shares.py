"""What one registry takes of what all share: connections beyond a blob's first, and threads."""

from __future__ import annotations

import asyncio
import os

import pytest

from mirror.upstream import health
from tests.support.mirrors import StartMirror
from tests.support.scripted import Hold, Scripted

EVIL = "/v2/evil.example/any/blobs/"


async def test_a_registry_that_drips_leaves_others_their_share_of_connections(start: StartMirror, upstream: Scripted) -> None:
    """It has more downloads under way than all registries together may have connections: another one's image is still prefetched, each blob once."""
    async with Scripted() as evil:
        mirror = await start(
            prefetch=True,
            settings={
                "registries": {"evil.example": {"endpoints": [evil.url]}},
                "upstream": {"connections": 10, "connections_per_blob": 2, "stall_timeout": 60},
            },
        )
        blobs = [evil.add_blob(os.urandom(1000)) for _ in range(12)]
        holds = [Hold(after=1) for _ in blobs]
        for blob, hold in zip(blobs, holds, strict=True):
            evil.fail(str(blob), hold)
        reading = [asyncio.create_task(mirror.get(EVIL + str(blob))) for blob in blobs]
        await asyncio.gather(*(hold.reached.wait() for hold in holds))
        image = upstream.add_image("library/app", "1", [os.urandom(1000) for _ in range(4)])
        await mirror.get("/v2/library/app/manifests/1")
        await mirror.get(f"/v2/library/app/blobs/{image.layers[0]}")
        for blob in (image.config, *image.layers):
            await mirror.until_cached(blob)
        assert upstream.count("GET", "/blobs/") == 5
        assert evil.count("GET", "/blobs/") == 12
        for hold in holds:
            hold.release.set()
        assert [answer.status for answer in await asyncio.gather(*reading)] == [200] * 12


async def test_a_registry_that_drips_leaves_others_their_threads(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many downloads as one endpoint may have, the next waits its turn, is told to come again, and is not asked for upstream; others are served."""
    monkeypatch.setattr(health, "MOST_ACTIVE", 3)
    async with Scripted() as evil:
        mirror = await start(
            settings={
                "registries": {"evil.example": {"endpoints": [evil.url]}},
                "upstream": {"stall_timeout": 60, "header_timeout": 1},
            }
        )
        blobs = [evil.add_blob(os.urandom(1000)) for _ in range(4)]
        holds = [Hold(after=1) for _ in blobs[:3]]
        for blob, hold in zip(blobs, holds, strict=False):
            evil.fail(str(blob), hold)
        reading = [asyncio.create_task(mirror.get(EVIL + str(blob))) for blob in blobs[:3]]
        await asyncio.gather(*(hold.reached.wait() for hold in holds))
        refused = await mirror.get(EVIL + str(blobs[3]))
        assert refused.status in (429, 503)
        assert b"the most from one endpoint" in refused.body
        assert evil.count("GET", str(blobs[3])) == 0
        other = upstream.add_blob(os.urandom(1000))
        assert (await mirror.get(f"/v2/library/app/blobs/{other}")).status == 200
        waiting = asyncio.create_task(mirror.get(EVIL + str(blobs[3])))
        holds[0].release.set()
        assert (await waiting).status == 200
        for hold in holds:
            hold.release.set()
        assert [answer.status for answer in await asyncio.gather(*reading)] == [200] * 3
        assert evil.count("GET", "/blobs/") == 4
