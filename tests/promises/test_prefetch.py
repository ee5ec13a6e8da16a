"""What the mirror promises to fetch before it is asked for (docs/design.md)."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from mirror.cache import prefetcher
from mirror.downloads.concurrency import AdaptiveConcurrency
from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Chunked, Fault, Hold, Length, Scripted, Status


@pytest.fixture
async def mirror(start: StartMirror) -> Mirror:
    """As it comes: the other tests, which count requests, have this switched off."""
    started: Mirror = await start(prefetch=True)
    return started


MIB = 1024 * 1024


def path(digest: Digest) -> str:
    return f"/v2/app/blobs/{digest}"


async def test_an_images_layers_come_in_as_soon_as_its_first_layer_is_asked_for(mirror: Mirror, upstream: Scripted) -> None:
    """Each once, whether the client then asks for it or not; what it asks for in the meantime joins."""
    image = upstream.add_image("library/app", "latest", [os.urandom(100_000) for _ in range(7)])
    before = await mirror.metric("mirror_prefetched_total")
    await mirror.get("/v2/app/manifests/latest")
    await asyncio.sleep(0.1)
    assert upstream.count("GET", "blobs") == 0
    await mirror.get(path(image.layers[3]))
    await mirror.until_cached(image.config)
    for layer in image.layers:
        await mirror.until_cached(layer)
    for layer in image.layers:
        assert (await mirror.get(path(layer))).digest() == layer
    assert [upstream.count("GET", str(blob)) for blob in (image.config, *image.layers)] == [1] * 8
    assert await mirror.metric("mirror_prefetched_total") - before == 7


async def test_never_for_platforms_that_nobody_asked_for(mirror: Mirror, upstream: Scripted) -> None:
    """The index names them, and they share a layer: still only the platform that was pulled comes in."""
    shared = os.urandom(1000)
    images = [upstream.add_image("library/app", None, [shared, os.urandom(1000)]) for _ in range(3)]
    upstream.add_index("library/app", "latest", images)
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(f"/v2/app/manifests/{images[1].digest}")
    await mirror.get(path(images[1].layers[0]))
    for blob in (images[1].config, *images[1].layers):
        await mirror.until_cached(blob)
    await asyncio.sleep(0.2)
    assert upstream.count("GET", "blobs") == 3


async def test_it_is_bounded_and_clients_come_first(mirror: Mirror, upstream: Scripted) -> None:
    """No more than four are fetched ahead at once while they bring nothing, and a client's own request waits for none of them."""
    image = upstream.add_image("library/app", "latest", [os.urandom(1000) for _ in range(13)])
    await mirror.get("/v2/app/manifests/latest")
    held = (image.config, *image.layers[1:])
    holds = [Hold(10) for _ in held]
    for blob, hold in zip(held, holds, strict=True):
        upstream.fail(str(blob), hold)
    await mirror.get(path(image.layers[0]))
    await until(lambda: sum(hold.reached.is_set() for hold in holds) == 4)
    await asyncio.sleep(0.1)
    assert upstream.count("GET", "blobs") == 5
    holds[12].release.set()
    assert (await mirror.get(path(image.layers[12]))).digest() == image.layers[12]
    for hold in holds:
        hold.release.set()
    for blob in held:
        await mirror.until_cached(blob)
    assert upstream.count("GET", "blobs") == 14


async def test_more_come_side_by_side_where_each_connection_is_slow(mirror: Mirror, upstream: Scripted) -> None:
    """Up to twelve, as long as twice as many bring more; each is still asked for once."""
    image = upstream.add_image("library/app", "latest", [os.urandom(1000), *(os.urandom(MIB) for _ in range(30))])
    upstream.rate = MIB / 2
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    for layer in image.layers:
        await mirror.until_cached(layer)
    assert 8 <= upstream.most_bodies <= 12
    await mirror.until_cached(image.config)
    assert upstream.count("GET", "blobs") == 32


def test_nothing_that_comes_is_no_reason_for_more() -> None:
    """Clients may read all that is fetched ahead, so that none of it is counted: that proves nothing of more side by side."""
    concurrency = AdaptiveConcurrency(12, least=4)
    for tick in range(100):
        concurrency.observe(tick / 10, 0, 10**12, 4)
    assert (concurrency.target, concurrency.learned_connections) == (4, None)


async def test_a_layer_that_cannot_be_had_harms_nobody(mirror: Mirror, upstream: Scripted) -> None:
    """Foreign layers are not in the registry: the others come in all the same."""
    image = upstream.add_image("library/app", "latest", [os.urandom(1000) for _ in range(3)])
    upstream.fail(str(image.layers[0]), Status(404), times=9)
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[2]))
    for blob in (image.config, *image.layers[1:]):
        await mirror.until_cached(blob)


async def test_nothing_is_fetched_ahead_where_that_is_switched_off(start: StartMirror, upstream: Scripted) -> None:
    """``prefetch = false``."""
    image = upstream.add_image("library/app", "latest", [os.urandom(1000) for _ in range(3)])
    mirror: Mirror = await start(prefetch=False)
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    await asyncio.sleep(0.2)
    assert upstream.count("GET", "blobs") == 1


async def test_a_configuration_alone_fetches_nothing_else(mirror: Mirror, upstream: Scripted) -> None:
    """``skopeo inspect`` reads the manifest and the configuration: two requests, and no layer."""
    image = upstream.add_image("library/app", "latest", [os.urandom(1000) for _ in range(3)])
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.config))
    await mirror.until_cached(image.config)
    # What a layer's request would have begun by now.
    await asyncio.sleep(0.3)
    assert upstream.count("GET", "blobs") == 1


def describe(upstream: Scripted, layers: dict[Digest, int]) -> None:
    """Puts library/app:latest upstream, whose manifest tells these sizes of its layers."""
    kind = "application/vnd.oci.image.layer.v1.tar"
    entries = [{"mediaType": kind, "digest": str(digest), "size": size} for digest, size in layers.items()]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": entries}).encode()
    upstream.manifests["library/app", "latest"] = OCI_MANIFEST, body
    upstream.manifests["library/app", str(Digest.of(body))] = OCI_MANIFEST, body


@pytest.mark.parametrize("fault", [Fault(), Chunked()])
async def test_no_descriptor_is_believed(mirror: Mirror, upstream: Scripted, fault: Fault) -> None:
    """A blob that is larger than its manifest says is given up, whether upstream says its length or not; one that a client asks for is fetched."""
    small, large = upstream.add_blob(os.urandom(1000)), upstream.add_blob(data := os.urandom(16 * MIB))
    describe(upstream, {small: 1000, large: 10})
    upstream.rate = 4.0 * MIB
    upstream.fail(str(large), fault)
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(small))
    await until(lambda: upstream.count("GET", str(large)) == 1)
    await until(lambda: upstream.bodies == 0)
    assert upstream.sent.get(str(large), 0) < 8 * MIB
    assert not mirror.cached(large)
    upstream.rate = None
    assert (await mirror.get(path(large))).body == data


async def test_a_length_that_is_too_large_ends_prefetching_before_the_bytes(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of "10 bytes" whose Content-Length is another: each is given up at once, without a look at how much has come meanwhile."""
    monkeypatch.setattr(prefetcher, "_TICK", 3600.0)
    mirror = await start(prefetch=True, settings={"upstream": {"stall_timeout": 60}})
    small = upstream.add_blob(os.urandom(1000))
    large = [upstream.add_blob(os.urandom(MIB)) for _ in range(20)]
    for blob in large:
        upstream.fail(str(blob), Length(2**30) & Hold(after=1000))
    describe(upstream, {small: 1000, **dict.fromkeys(large, 10)})
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(small))
    await until(lambda: all(upstream.count("GET", str(blob)) == 1 for blob in large))
    assert sum(upstream.sent.values()) <= 1000 + 1000 * len(large)
    assert not any(mirror.cached(blob) for blob in large)


async def test_each_registry_has_a_budget(mirror: Mirror, upstream: Scripted) -> None:
    """Blobs whose descriptors promise more than all that may be prefetched of a registry are left to the clients."""
    blobs = [upstream.add_blob(os.urandom(1000)) for _ in range(3)]
    describe(upstream, {blobs[0]: 1000, blobs[1]: 2**40, blobs[2]: 1000})
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(blobs[0]))
    await mirror.until_cached(blobs[2])
    assert upstream.count("GET", str(blobs[1])) == 0


async def test_a_registry_that_drips_holds_up_no_other(start: StartMirror, upstream: Scripted) -> None:
    """Each registry's blobs take their turns for themselves."""
    async with Scripted() as other:
        mirror: Mirror = await start(prefetch=True, settings={"registries": {"other.example": {"endpoints": [other.url]}}})
        slow = other.add_image("any", "1", [os.urandom(1000) for _ in range(20)])
        holds = [Hold(10) for _ in slow.layers[1:]]
        for layer, hold in zip(slow.layers[1:], holds, strict=True):
            other.fail(str(layer), hold)
        await mirror.get("/v2/other.example/any/manifests/1")
        await mirror.get(f"/v2/other.example/any/blobs/{slow.layers[0]}")
        await until(lambda: other.bodies >= 3)
        image = upstream.add_image("library/app", "latest", [os.urandom(1000) for _ in range(3)])
        await mirror.get("/v2/app/manifests/latest")
        await mirror.get(path(image.layers[0]))
        for blob in (image.config, *image.layers):
            await mirror.until_cached(blob)
        assert not any(hold.release.is_set() for hold in holds)
        for hold in holds:
            hold.release.set()


async def test_an_image_that_the_cache_cannot_hold_is_left_to_its_clients(start: StartMirror, upstream: Scripted) -> None:
    """Its layers would drive out each other, and all else, before anybody asks for them."""
    mirror = await start(prefetch=True, max_size="4MiB")
    hot = upstream.add_blob(os.urandom(MIB))
    await mirror.get(path(hot))
    await mirror.until_cached(hot)
    image = upstream.add_image("library/app", "latest", [os.urandom(MIB) for _ in range(6)])
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    await asyncio.sleep(0.3)
    assert upstream.count("GET", "blobs") == 2
    assert mirror.cached(hot)


async def test_one_request_causes_a_bounded_number_of_others(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest may name as many blobs as fit into four megabytes."""
    monkeypatch.setattr(prefetcher, "_MOST_OF_IMAGE", 5)
    mirror = await start(prefetch=True)
    image = upstream.add_image("library/app", "latest", [os.urandom(1000) for _ in range(8)])
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    await asyncio.sleep(0.3)
    assert upstream.count("GET", "blobs") == 1
