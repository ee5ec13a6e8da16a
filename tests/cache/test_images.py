"""Pin, unpin, refresh and delete, as the command line and the dashboard call them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from contextlib import closing

import pytest

from mirror import wiring
from mirror.cache.cache import Cache
from mirror.cache.images import Refreshed
from mirror.config import load
from mirror.errors import CatalogFailed, ManifestUnknown, Pinned, UpstreamError
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.store import Deleted
from tests.support.mirrors import Mirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Hold, Image, Scripted, Status

APP = Repository("docker.io", "library/app")
OTHER = Repository("docker.io", "library/other")
ONE, TWO = Tag("1"), Tag("2")


async def pull(mirror: Mirror, image: Image, tag: str, repository: str = "app") -> None:
    """As a client does."""
    await mirror.get(f"/v2/{repository}/manifests/{tag}")
    for blob in (image.config, *image.layers):
        await mirror.get(f"/v2/{repository}/blobs/{blob}")
        await mirror.until_cached(blob)
    # A file is there a moment before its row is.
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db:
        rows = "SELECT count(*) FROM content WHERE digest IN (SELECT value FROM json_each(?))"
        blobs = {str(blob) for blob in (image.config, *image.layers)}
        await until(lambda: db.execute(rows, (json.dumps(list(blobs)),)).fetchone() == (len(blobs),))


def beside(mirror: Mirror, upstream: Scripted) -> contextlib.AbstractAsyncContextManager[Cache]:
    """The same directory, as another process has it."""
    registries = {"docker.io": {"endpoints": [upstream.url]}}
    waits = {"connect_timeout": 1, "header_timeout": 2, "attempts": 1}
    return wiring.opened(load(None, {}, {"cache": {"dir": str(mirror.directory)}, "registries": registries, "upstream": waits}))


def listed(mirror: Mirror) -> list[str]:
    with closing(Inventory(mirror.directory)) as inventory:
        return [str(image) for image in inventory.images().entries]


async def test_deleting_leaves_what_other_images_have(mirror: Mirror, upstream: Scripted) -> None:
    """The image's own layers, configuration and manifest go, with their bytes counted; a shared layer stays, and goes with its last image."""
    base, own = os.urandom(5000), os.urandom(3000)
    one = upstream.add_image("library/app", "1", layers=[base, own])
    two = upstream.add_image("library/other", "2", layers=[base])
    await pull(mirror, one, "1")
    await pull(mirror, two, "2", "other")
    async with beside(mirror, upstream) as cache:
        sizes = len(one.body) + len(upstream.blobs[str(one.config)]) + 3000
        assert await cache.images.delete(APP, ONE) == Deleted(one.digest, ("1",), sizes, 5000)
        assert [mirror.cached(blob) for blob in (one.digest, one.config, one.layers[1])] == [False] * 3
        assert all(mirror.cached(blob) for blob in (two.digest, two.config, *two.layers))
        assert listed(mirror) == ["docker.io/library/other:2"]
        assert (await cache.images.delete(OTHER, TWO)).kept == 0
    assert listed(mirror) == []
    assert not any((mirror.directory / "blobs" / "sha256").iterdir())


async def test_deleting_one_of_two_names_frees_nothing(mirror: Mirror, upstream: Scripted) -> None:
    """Another tag, of the same repository or another, keeps all of it; by digest, all tags of the repository go."""
    image = upstream.add_image("library/app", "1")
    for repository, tag in (("library/app", "2"), ("library/app", "3"), ("library/other", "1")):
        upstream.add_manifest(repository, tag, image.body)
        await pull(mirror, image, tag, repository)
    await pull(mirror, image, "1")
    async with beside(mirror, upstream) as cache:
        gone = await cache.images.delete(APP, ONE)
        assert (gone.tags, gone.freed) == (("1",), 0)
        assert listed(mirror) == ["docker.io/library/app:2", "docker.io/library/app:3", "docker.io/library/other:1"]
        gone = await cache.images.delete(APP, image.digest)
        assert (gone.tags, gone.freed) == (("2", "3"), 0)
        assert listed(mirror) == ["docker.io/library/other:1"]
        gone = await cache.images.delete(OTHER, ONE)
        assert gone.freed > 1000
    assert not mirror.cached(image.layers[0])


async def test_an_index_goes_with_its_manifests_but_for_those_that_are_images_too(mirror: Mirror, upstream: Scripted) -> None:
    """What an index lists goes with it; what has a tag of its own, or is listed by another index, stays with its layers."""
    images = [upstream.add_image("library/app", "alone" if number == 1 else None) for number in range(3)]
    upstream.add_index("library/app", "1", images)
    upstream.add_index("library/app", "2", images[2:])
    for tag in ("1", "2"):
        await mirror.get(f"/v2/app/manifests/{tag}")
    for image in images:
        await pull(mirror, image, str(image.digest))
    await pull(mirror, images[1], "alone")
    async with beside(mirror, upstream) as cache:
        await cache.images.delete(APP, ONE)
    assert [mirror.cached(image.digest) for image in images] == [False, True, True]
    assert [mirror.cached(image.layers[0]) for image in images] == [False, True, True]
    assert listed(mirror) == ["docker.io/library/app:2", "docker.io/library/app:alone"]


async def test_what_is_pinned_is_deleted_by_force_only(mirror: Mirror, upstream: Scripted) -> None:
    """Refused, and nothing is touched; forced, the pin goes too. What is not there cannot be deleted."""
    image = upstream.add_image("library/app", "1")
    await pull(mirror, image, "1")
    async with beside(mirror, upstream) as cache:
        assert await cache.images.pin(APP, ONE)
        for reference in (ONE, image.digest):
            with pytest.raises(Pinned, match="unpin"):
                await cache.images.delete(APP, reference)
        assert mirror.cached(image.layers[0])
        await cache.images.delete(APP, ONE, force=True)
        assert not mirror.cached(image.layers[0])
        assert not await cache.images.unpin(APP, ONE)
        for reference in (ONE, image.digest):
            with pytest.raises(ManifestUnknown, match="library/app"):
                await cache.images.delete(APP, reference)


async def test_a_pin_tells_whether_the_image_is_cached(mirror: Mirror, upstream: Scripted) -> None:
    """It fetches nothing, and counts once the image comes; unpinning tells whether it was pinned."""
    image = upstream.add_image("library/app", "1")
    async with beside(mirror, upstream) as cache:
        for reference in (ONE, image.digest):
            assert not await cache.images.pin(APP, reference)
        await pull(mirror, image, "1")
        for reference in (ONE, image.digest):
            assert await cache.images.pin(APP, reference)
            assert await cache.images.unpin(APP, reference)
            assert not await cache.images.unpin(APP, reference)


async def test_a_running_mirror_notices_soon_what_another_process_deletes(mirror: Mirror, upstream: Scripted) -> None:
    """Though tag and manifest are in its memory, and fresh: the next pull after a moment asks upstream again."""
    image = upstream.add_image("library/app", "1")
    await pull(mirror, image, "1")
    for _ in range(2):
        assert (await mirror.get("/v2/app/manifests/1")).cache == "mirror; hit"
    async with beside(mirror, upstream) as cache:
        await cache.images.delete(APP, ONE)
    asked = upstream.count("GET", "/manifests/1")
    while (await mirror.get("/v2/app/manifests/1")).cache == "mirror; hit":
        await asyncio.sleep(0.1)
    await pull(mirror, image, "1")
    assert upstream.count("GET", "/manifests/1") == asked + 1
    assert listed(mirror) == ["docker.io/library/app:1"]


async def test_what_is_being_read_is_read_to_its_end(mirror: Mirror, upstream: Scripted) -> None:
    """By a slow client, of the finished file; a download in progress lands all the same."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(8 << 20), os.urandom(1 << 20)])
    await mirror.get("/v2/app/manifests/1")
    await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
    await mirror.until_cached(image.layers[0])
    hold = Hold(1000)
    upstream.fail(str(image.layers[1]), hold)
    reader, writer = await mirror.slow_reader(f"/v2/app/blobs/{image.layers[0]}")
    other, beside_it = await mirror.slow_reader(f"/v2/app/blobs/{image.layers[1]}")
    await hold.reached.wait()
    async with beside(mirror, upstream) as cache:
        await cache.images.delete(APP, ONE)
    assert not mirror.cached(image.layers[0])
    hold.release.set()
    for stream, layer in ((reader, image.layers[0]), (other, image.layers[1])):
        data = upstream.blobs[str(layer)]
        assert await stream.readexactly(len(data)) == data
    writer.close()
    beside_it.close()


async def test_refreshing_asks_upstream_though_the_tag_is_fresh(mirror: Mirror, upstream: Scripted) -> None:
    """One HEAD where nothing changed, a GET where it did; the manifest is cached then, and clients get it. A digest is what it is."""
    first = upstream.add_image("library/app", "1")
    async with beside(mirror, upstream) as cache:
        assert await cache.images.refresh(APP, ONE) == Refreshed(None, first.digest)
        assert await cache.images.refresh(APP, ONE) == Refreshed(first.digest, first.digest)
        assert (upstream.count("HEAD", "/manifests/"), upstream.count("GET", "/manifests/")) == (1, 1)
        second = upstream.add_image("library/app", "1")
        found = await cache.images.refresh(APP, ONE)
        assert (found, found.changed) == (Refreshed(first.digest, second.digest), True)
        assert mirror.cached(second.digest)
        assert not (await cache.images.refresh(APP, second.digest)).changed
    answer = await mirror.get("/v2/app/manifests/1")
    assert (answer.digest(), answer.cache) == (second.digest, "mirror; hit")


async def test_refreshing_a_tag_whose_digest_upstream_does_not_give(mirror: Mirror, upstream: Scripted) -> None:
    """A client has asked by HEAD what it means, and a lagging replica does not have the digest yet: the manifest comes by the tag."""
    image = upstream.add_image("library/app", "1")
    assert (await mirror.head("/v2/app/manifests/1")).status == 200
    for method in ("HEAD", "GET"):
        upstream.fail(str(image.digest), Status(404), times=9, method=method)
    async with beside(mirror, upstream) as cache:
        assert await cache.images.refresh(APP, ONE) == Refreshed(image.digest, image.digest)
    assert mirror.cached(image.digest)
    assert upstream.count("GET", "/manifests/1") == 1


async def test_refreshing_what_upstream_cannot_tell_changes_nothing(mirror: Mirror, upstream: Scripted) -> None:
    """Upstream down: an error, and the tag is served as before. Gone from upstream: the tag goes."""
    image = upstream.add_image("library/app", "1")
    await pull(mirror, image, "1")
    upstream.fail("/manifests/1", Status(500), times=9, method="HEAD")
    upstream.fail("/manifests/1", Status(500), times=9, method="GET")
    async with beside(mirror, upstream) as cache:
        with pytest.raises(UpstreamError):
            await cache.images.refresh(APP, ONE)
        assert listed(mirror) == ["docker.io/library/app:1"]
        upstream.heal()
        del upstream.manifests["library/app", "1"]
    async with beside(mirror, upstream) as cache:
        with pytest.raises(ManifestUnknown):
            await cache.images.refresh(APP, ONE)
    assert listed(mirror) == [f"docker.io/library/app@{image.digest}"]


async def test_a_catalog_that_fails_is_told(mirror: Mirror, upstream: Scripted) -> None:
    """Not passed over as in a pull, where it is nobody's affair."""
    async with beside(mirror, upstream) as cache:
        executor = cache.store._catalog  # type: ignore[attr-defined]
        executor._catalog._db.execute("PRAGMA query_only = 1")
        with pytest.raises(CatalogFailed, match="readonly"):
            await cache.images.pin(APP, Digest.of(b"x"))


async def test_a_tag_that_another_process_has_checked_is_not_served_as_before(mirror: Mirror, upstream: Scripted) -> None:
    """Though it is fresh here: what somebody has refreshed is served by all workers a second later, without another request to upstream."""
    old = upstream.add_image("library/app", "1")
    for _ in range(2):
        assert (await mirror.get("/v2/app/manifests/1")).body == old.body
    new = upstream.add_image("library/app", "1", layers=[b"new"])
    async with beside(mirror, upstream) as cache:
        assert (await cache.images.refresh(APP, ONE)).now == new.digest
    asked = upstream.count("HEAD"), upstream.count("GET")
    async with asyncio.timeout(PATIENCE):
        while (await mirror.get("/v2/app/manifests/1")).body != new.body:
            await asyncio.sleep(0.05)
    assert (upstream.count("HEAD"), upstream.count("GET")) == asked
