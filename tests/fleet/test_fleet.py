"""A fleet of equal mirrors: each content is fetched from its registry once, by its home."""

from __future__ import annotations

import asyncio
import os

import pytest

from mirror.names import Digest
from tests.support.members import StartMembers
from tests.support.mirrors import Mirror
from tests.support.scripted import Image, Scripted

MIB = 1024 * 1024


def of(blob: Digest) -> str:
    return f"/v2/library/app/blobs/{blob}"


async def pull(mirror: Mirror, image: Image, tag: str = "1") -> int:
    """As a client does. Returns the bytes of its content."""
    head = await mirror.head(f"/v2/library/app/manifests/{tag}")
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.get(f"/v2/library/app/manifests/{image.digest}")).body == image.body
    blobs = await asyncio.gather(*(mirror.get(of(digest)) for digest in (image.config, *image.layers)))
    for digest, got in zip((image.config, *image.layers), blobs, strict=True):
        assert (got.status, got.digest()) == (200, digest)
    return sum(len(got.body) for got in blobs)


@pytest.mark.parametrize("prefetch", [False, True])
async def test_thirty_clients_of_three_mirrors_cost_upstream_what_one_costs(
    members: StartMembers, upstream: Scripted, prefetch: bool
) -> None:
    """The tag is asked for by one HEAD, and each manifest and blob by one GET, whichever mirror the clients ask."""
    fleet = await members(prefetch=prefetch)
    image = upstream.add_image("library/app", "1", layers=[os.urandom(MIB) for _ in range(4)])
    mirrors = list(fleet.mirrors.values())
    sizes = await asyncio.gather(*(pull(mirrors[number % 3], image) for number in range(30)))
    assert sum(upstream.sent.get(str(digest), 0) for digest in (image.config, *image.layers)) == sizes[0]
    assert upstream.count("HEAD") == 1
    for digest in (image.digest, image.config, *image.layers):
        assert upstream.count("GET", str(digest)) == 1
