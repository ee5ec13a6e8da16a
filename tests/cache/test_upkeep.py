"""Watermarks, age limits and the scrub, and eviction beside running pulls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from mirror.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog, TagRecord
from mirror.storage.disk.catalog.schema import FILE
from mirror.storage.disk.maintenance.reading import Reading
from mirror.storage.settings import Expire
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror, until
from tests.support.scripted import Scripted

MIB = 1024 * 1024


def path(digest: Digest, repository: str = "library/app") -> str:
    return f"/v2/{repository}/blobs/{digest}"


def stored(directory: Path) -> int:
    """Bytes of all finished content."""
    return sum(file.stat().st_size for file in (directory / "blobs").rglob("*") if file.is_file())


def damage(mirror: Mirror, digest: Digest) -> None:
    """Turns a bit on the disk, as years may."""
    file = mirror.directory / "blobs" / digest.algorithm / digest.hex
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


# ---------------------------------------------------------------------- watermarks


async def test_eviction_begins_at_the_high_watermark_and_ends_at_the_low_one(start: StartMirror, upstream: Scripted) -> None:
    """Below the one nothing goes; what would go above it takes the cache down to the other."""
    mirror: Mirror = await start(max_size="10MiB", high_watermark=0.85, low_watermark=0.45)
    blobs = [upstream.add_blob(os.urandom(MIB)) for _ in range(9)]
    for blob in blobs[:8]:
        await mirror.get(path(blob))
        await mirror.until_cached(blob)
    assert all(mirror.cached(blob) for blob in blobs[:8])
    await mirror.get(path(blobs[8]))
    await mirror.until_cached(blobs[8])
    assert [mirror.cached(blob) for blob in blobs] == [False] * 5 + [True] * 4


async def test_one_blob_may_take_all_that_there_is(start: StartMirror, upstream: Scripted) -> None:
    """The watermarks are no bound on what is kept; `max_size` is, to the byte."""
    mirror: Mirror = await start(max_size="4MiB")
    blob = upstream.add_blob(os.urandom(4 * MIB))
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    larger = upstream.add_blob(os.urandom(4 * MIB + 1))
    assert (await mirror.get(path(larger))).cache == "mirror; fwd=miss; detail=not-stored"
    assert mirror.cached(blob)


async def test_layers_asked_for_once_do_not_drive_out_those_in_use(start: StartMirror, upstream: Scripted) -> None:
    """A crowd of builds, each pulled once, and larger than the cache: the base that was asked for twice is still there. After a restart, too."""
    mirror: Mirror = await start(max_size="8MiB")
    base = upstream.add_blob(os.urandom(2 * MIB))
    for _ in range(2):
        await mirror.get(path(base))
        await mirror.until_cached(base)
    for _ in range(2):
        for _ in range(12):
            blob = upstream.add_blob(os.urandom(MIB))
            await mirror.get(path(blob))
            await mirror.until_cached(blob)
        assert mirror.cached(base)
        await mirror.stop()
        mirror = await start(max_size="8MiB")
    assert upstream.count("GET", str(base)) == 1


# ---------------------------------------------------------------------- beside running pulls


async def test_eviction_beside_pulls_breaks_none(upstream: Scripted, tmp_path: Path) -> None:
    """Two processes share a cache that a tenth of the content fits into; every answer to every client is whole and right, and the size is kept."""
    blobs = [upstream.add_blob(os.urandom(random.randint(1, 2 * MIB))) for _ in range(60)]
    directory = tmp_path / "cache"
    size = {"CACHE__MAX_SIZE": "6MiB", "CACHE__SCRUB_INTERVAL": "100ms", "CACHE__SCRUB_RATE": "1GB"}
    upstreams: dict[str, str | list[str]] = {"docker.io": upstream.url}
    with MirrorProcess(directory, upstreams, **size) as one, MirrorProcess(directory, upstreams, **size) as other:
        async with aiohttp.ClientSession() as session:

            async def client(seed: int) -> None:
                pick = random.Random(seed)
                for _ in range(25):
                    blob = blobs[min(int(pick.expovariate(0.1)), len(blobs) - 1)]
                    async with session.get(pick.choice((one, other)).url + path(blob)) as response:
                        body = bytearray()
                        async for piece in response.content.iter_chunked(65536):
                            body += piece
                            if pick.random() < 0.02:
                                await asyncio.sleep(0.05)
                    assert Digest.of(bytes(body)) == blob

            await asyncio.gather(*(client(seed) for seed in range(12)))
        assert one.metric("mirror_evictions_total") + other.metric("mirror_evictions_total") > 20
        assert one.metric("mirror_scrub_damaged_total") + other.metric("mirror_scrub_damaged_total") == 0
        await until(lambda: stored(directory) <= 6 * MIB)
        assert one.terminate() == other.terminate() == 0
    assert "Traceback" not in one.log + other.log
    catalog = Catalog(directory / "catalog")
    assert catalog.totals()[0] == sum(catalog.content().values()) == stored(directory)
    catalog.close()


# ---------------------------------------------------------------------- age limits


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("ci/*", True),
        ("docker.io/ci/*", True),
        ("*", True),
        ("ci/app", True),
        ("ghcr.io/ci/*", False),
        ("ci", False),
        ("app", False),
    ],
)
def test_which_repositories_a_limit_is_for(pattern: str, covered: bool) -> None:
    """Shell patterns, over the name with or without its registry."""
    assert Expire(pattern, 1.0).covers("docker.io", "ci/app") is covered


def test_what_belongs_to_expired_images_alone(tmp_path: Path) -> None:
    """Not what a living image shares with them, nor what several repositories hold of which one has no limit, nor blobs of no known image."""
    catalog = Catalog(tmp_path)
    digests = {
        name: Digest.of(name.encode())
        for name in ("index", "old", "layer", "shared", "live", "both", "held", "stray", "fresh", "top")
    }
    ci, prod = Repository("docker.io", "ci/app"), Repository("docker.io", "prod/app")

    def manifest(name: str, children: list[str], *holders: Repository, media_type: str = OCI_MANIFEST) -> None:
        catalog.add_manifest(Descriptor(media_type, digests[name], 10), [digests[child] for child in children])
        for holder in holders:
            catalog.possessions.hold(holder, digests[name], told=True)

    manifest("index", ["old"], ci, media_type=OCI_INDEX)
    manifest("old", ["layer", "shared", "fresh"], ci)
    manifest("live", ["shared"], prod)
    manifest("both", ["held"], ci, prod)
    manifest("top", ["layer"], ci)
    for name in ("layer", "shared", "held", "stray", "fresh"):
        catalog.add(digests[name], 100)
    now = time.time()
    catalog.touch(dict.fromkeys(digests.values(), now - 1000) | {digests["fresh"]: now, digests["top"]: now})

    def expired(before: float, *repositories: Repository) -> set[str]:
        found = catalog.expired([(one.registry, one.path, before) for one in repositories])
        return {name for name, digest in digests.items() if digest in found}

    assert expired(now - 1001, ci) == set()
    assert expired(now - 500, ci) == {"index", "old"}
    catalog.touch({digests["top"]: now - 1000})
    assert expired(now - 500, ci) == {"index", "old", "layer", "top"}
    assert expired(now - 500, ci, prod) == {"index", "old", "layer", "top", "shared", "live", "both", "held"}
    assert expired(now - 500) == set()
    catalog.close()


async def test_images_unused_for_their_limit_go(start: StartMirror, upstream: Scripted) -> None:
    """Manifests with their layers; not pinned ones, and not those of other repositories. What goes is fetched again when somebody asks."""
    rules = [{"repositories": "ci/*", "after": "400ms"}]
    mirror: Mirror = await start(expire=rules)
    images = {name: upstream.add_image(name, "latest") for name in ("ci/app", "ci/pinned", "library/app")}
    catalog = Catalog(mirror.directory / "catalog")
    catalog.pin(Repository("docker.io", "ci/pinned"), images["ci/pinned"].digest)

    def parts(name: str) -> list[Digest]:
        return [images[name].digest, images[name].config, *images[name].layers]

    for name in images:
        await mirror.get(f"/v2/{name}/manifests/latest")
        for blob in parts(name)[1:]:
            await mirror.get(path(blob, name))
    await until(lambda: not any(mirror.cached(digest) for digest in parts("ci/app")))
    # A file is gone a moment before its row is.
    await until(lambda: catalog.totals()[1] == 6)
    catalog.close()
    for name in ("ci/pinned", "library/app"):
        assert all(mirror.cached(digest) for digest in parts(name))
    assert (await mirror.get(path(images["ci/app"].config, "ci/app"))).digest() == images["ci/app"].config


async def test_an_image_in_use_does_not_expire_under_its_reader(start: StartMirror, upstream: Scripted) -> None:
    """A layer that is being read stays, and so does the manifest that names it, until nobody reads it."""
    mirror: Mirror = await start(expire=[{"repositories": "ci/*", "after": "3s"}])
    image = upstream.add_image("ci/app", "latest", layers=[os.urandom(16 * MIB), os.urandom(1000)])
    await mirror.get("/v2/ci/app/manifests/latest")
    for layer in image.layers:
        await mirror.get(path(layer, "ci/app"))
        await mirror.until_cached(layer)
    reader, writer = await mirror.slow_reader(path(image.layers[0], "ci/app"))
    await until(lambda: not mirror.cached(image.layers[1]))
    assert mirror.cached(image.layers[0])
    assert mirror.cached(image.digest)
    assert Digest.of(await reader.readexactly(16 * MIB)) == image.layers[0]
    writer.close()
    await writer.wait_closed()
    await until(lambda: not mirror.cached(image.layers[0]) and not mirror.cached(image.digest))


def test_manifests_of_which_nothing_is_left(tmp_path: Path) -> None:
    """They are found once nothing that they name is cached, the longest unused first."""
    catalog = Catalog(tmp_path)
    digests = [Digest.of(bytes([number])) for number in range(4)]
    for number in range(3):
        catalog.add_manifest(Descriptor(OCI_MANIFEST, digests[number], 10), [digests[3]] if number == 0 else [])
    catalog.add(digests[3], 100)
    catalog.touch({digest: float(10 - number) for number, digest in enumerate(digests)})
    assert catalog.spent_manifests() == [(digests[2], 10), (digests[1], 10)]
    assert catalog.spent_manifests(9.0) == [(digests[2], 10)]
    catalog.close()


# ---------------------------------------------------------------------- scrub


async def test_the_scrub_reads_no_faster_than_it_may(tmp_path: Path) -> None:
    """Whatever the disk can do: at 8 MiB a second, 4 MiB take half of one."""
    store, data = BlobStore(tmp_path), os.urandom(4 * MIB)
    store.put(Digest.of(data), data)
    with closing(Reading(store, rate=8 * MIB)) as reading:
        await reading.start()
        fd = await reading.open(Digest.of(data))
        began = time.monotonic()
        assert await reading.intact(fd, Digest.of(data), len(data))
        assert time.monotonic() - began > 0.45
        os.close(fd)


async def test_rot_is_found_and_healed(start: StartMirror, upstream: Scripted) -> None:
    """A damaged layer is fetched again by itself, with nobody asking; what is sound is left alone."""
    mirror: Mirror = await start(scrub_rate="1GB", scrub_interval="300ms")
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(3 * MIB + 7), os.urandom(1)])
    await mirror.get("/v2/app/manifests/latest")
    for layer in image.layers:
        await mirror.get(path(layer))
        await mirror.until_cached(layer)
    before = await mirror.metric("mirror_scrub_damaged_total"), await mirror.metric("mirror_scrubbed_bytes_total")
    damage(mirror, image.layers[0])
    await until(lambda: upstream.count("GET", str(image.layers[0])) == 2)
    file = mirror.directory / "blobs" / "sha256" / image.layers[0].hex
    await until(lambda: file.exists() and Digest.of(file.read_bytes()) == image.layers[0])
    assert await mirror.metric("mirror_scrub_damaged_total") - before[0] == 1
    assert await mirror.metric("mirror_scrubbed_bytes_total") - before[1] >= 3 * MIB
    assert (await mirror.get(path(image.layers[0]))).digest() == image.layers[0]
    assert upstream.count("GET", str(image.layers[1])) == 1


@pytest.mark.parametrize("what", ["flipped", "truncated", "orphan"])
async def test_what_cannot_be_healed_now_is_not_served(start: StartMirror, upstream: Scripted, what: str) -> None:
    """With upstream down, or with nobody known to hold it, a damaged blob is gone, and comes back when it is asked for."""
    mirror: Mirror = await start(scrub_rate="1GB", scrub_interval="300ms")
    image = upstream.add_image("library/app", "latest")
    blob = image.layers[0]
    if what != "orphan":
        await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(blob))
    await mirror.until_cached(blob)
    await upstream.stop()
    if what == "truncated":
        os.truncate(mirror.directory / "blobs" / "sha256" / blob.hex, 10)
    else:
        damage(mirror, blob)
    await until(lambda: not mirror.cached(blob))
    await upstream.start()
    assert (await mirror.get(path(blob))).digest() == blob


async def test_a_damaged_manifest_is_healed(start: StartMirror, upstream: Scripted) -> None:
    """From memory with upstream away, else from upstream, with nobody asking; its image is still listed, and pinned with its layers."""
    repository = Repository("docker.io", "library/app")
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(scrub_rate="1GB", scrub_interval="300ms")
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(path(image.layers[0]))
    await mirror.until_cached(image.layers[0])
    catalog = Catalog(mirror.directory / "catalog")
    catalog.pin(repository, Tag("latest"))
    file = mirror.directory / "blobs" / "sha256" / image.digest.hex

    async def rot() -> None:
        damage(mirror, image.digest)
        await until(lambda: file.exists() and file.read_bytes() == image.body)
        await until(lambda: {image.digest, image.layers[0]} <= catalog.pinned().keys())

    await upstream.stop()
    await rot()
    await mirror.stop()
    await upstream.start()
    mirror = await start(scrub_rate="1GB", scrub_interval="300ms")
    asked = upstream.count("GET", f"/manifests/{image.digest}")
    await rot()
    assert upstream.count("GET", f"/manifests/{image.digest}") == asked + 1
    catalog.close()


def test_what_was_verified_the_longest_ago_is_scrubbed_first(tmp_path: Path) -> None:
    """New content counts as verified, which it is; what was read again waits for its next turn."""
    catalog = Catalog(tmp_path)
    digests = [Digest.of(bytes([number])) for number in range(3)]
    for digest in digests:
        catalog.add(digest, 10)
    assert catalog.unverified(time.time() - 60) is None
    catalog.set_verified([digests[1]], 5.0)
    catalog.set_verified([digests[2]], 4.0)
    assert catalog.unverified(6.0) == (digests[2], 10)
    catalog.set_verified([digests[2]], 7.0)
    assert catalog.unverified(6.0) == (digests[1], 10)
    catalog.close()


def test_who_holds_a_blob(tmp_path: Path) -> None:
    """A repository that holds a manifest which names it; and of a manifest, one that holds it."""
    catalog = Catalog(tmp_path)
    manifest, layer = Digest.of(b"manifest"), Digest.of(b"layer")
    catalog.add_manifest(Descriptor(OCI_MANIFEST, manifest, 10), [layer])
    assert catalog.holder(layer) is None
    catalog.possessions.hold(Repository("ghcr.io", "owner/app"), manifest, told=True)
    assert catalog.holder(layer) == Repository("ghcr.io", "owner/app")
    catalog.set_tag(Repository("ghcr.io", "owner/app"), "latest", TagRecord(Descriptor(OCI_MANIFEST, manifest, 10), 0.0))
    assert catalog.holder(manifest) == Repository("ghcr.io", "owner/app")
    catalog.close()


def test_a_catalog_of_before_knows_what_repositories_have(tmp_path: Path) -> None:
    """Until now a repository had what its manifests name, at any depth: what is cached stays there for its clients without a question to upstream. That happens once."""
    app, index, image, layer = Repository("ghcr.io", "owner/app"), *(Digest.of(name) for name in (b"index", b"image", b"layer"))
    catalog = Catalog(tmp_path)
    catalog.add_manifest(Descriptor(OCI_INDEX, index, 10), [image])
    catalog.add_manifest(Descriptor(OCI_MANIFEST, image, 10), [layer])
    catalog.add(layer, 10)
    catalog.possessions.hold(app, index, told=True)
    catalog.close()
    Catalog(tmp_path).close()
    catalog = Catalog(tmp_path)
    assert catalog.possessions.holders(layer) == frozenset()
    catalog.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute("DROP TABLE possession")
    catalog = Catalog(tmp_path)
    assert [catalog.possessions.holders(digest) for digest in (index, image, layer)] == [{app}] * 3
    catalog.drop(layer)
    assert catalog.possessions.holders(layer) == frozenset()
    catalog.close()
