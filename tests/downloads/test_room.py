"""What a registry that claims, drips or breaks off may cost the cache."""

from __future__ import annotations

import os

from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Cut, Scripted, Status

MIB = 1024 * 1024


async def test_downloads_that_are_never_finished_take_no_room_from_others(start: StartMirror, upstream: Scripted) -> None:
    """A registry breaks off one blob after the other, twice the cache in all: what is cached stays, and what comes next is cached."""
    mirror: Mirror = await start(max_size="4MiB")
    hot = upstream.add_blob(os.urandom(MIB))
    await mirror.get(f"/v2/library/app/blobs/{hot}")
    await mirror.until_cached(hot)
    for _ in range(8):
        broken = upstream.add_blob(os.urandom(MIB))
        upstream.fail(str(broken), Cut(900_000))
        upstream.fail(str(broken), Status(404), times=20)
        assert (await mirror.get(f"/v2/library/app/blobs/{broken}")).cut
    following = upstream.add_blob(os.urandom(MIB))
    await mirror.get(f"/v2/library/app/blobs/{following}")
    await mirror.until_cached(following)
    assert mirror.cached(hot)
    assert upstream.count("GET", str(hot)) == upstream.count("GET", str(following)) == 1
