"""Pins: images that are never evicted."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from mirror.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.catalog.catalog import Catalog, TagRecord
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted

APP = Repository("docker.io", "library/app")
LATEST = Tag("latest")


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def record(name: str, media_type: str = OCI_MANIFEST) -> TagRecord:
    return TagRecord(Descriptor(media_type, digest(name), 10), 0.0)


def test_a_pin_keeps_everything_of_its_image(tmp_path: Path) -> None:
    """Index, manifests, configs and layers, as far as they are cached, and nothing of others; by tag as by digest."""
    catalog = Catalog(tmp_path)
    catalog.add_manifest(Descriptor(OCI_INDEX, digest("index"), 10), [digest("manifest"), digest("never fetched")])
    catalog.add_manifest(Descriptor(OCI_MANIFEST, digest("manifest"), 20), [digest("config"), digest("layer")])
    catalog.add_manifest(Descriptor(OCI_MANIFEST, digest("other"), 40), [digest("layer"), digest("its own")])
    for name in ("config", "layer", "its own"):
        catalog.add(digest(name), 100)
    assert catalog.pinned() == {}
    everything = {digest("index"): 10, digest("manifest"): 20, digest("config"): 100, digest("layer"): 100}
    catalog.set_tag(APP, LATEST.value, record("index", OCI_INDEX))
    for reference in (LATEST, digest("index")):
        catalog.pin(APP, reference)
        catalog.pin(APP, reference)
        assert catalog.pinned() == everything
        assert catalog.unpin(APP, reference)
        assert not catalog.unpin(APP, reference)
        assert catalog.pinned() == {}
    catalog.close()


def test_a_pinned_tag_keeps_what_it_means_today(tmp_path: Path) -> None:
    """A pin made before the tag is known holds once it is; it moves with the tag, stays when upstream drops the tag, and outlives a restart."""
    catalog = Catalog(tmp_path)
    catalog.pin(APP, LATEST)
    assert catalog.pinned() == {}
    for name in ("old", "new"):
        catalog.add_manifest(Descriptor(OCI_MANIFEST, digest(name), 10), [])
        catalog.set_tag(APP, LATEST.value, record(name))
        assert list(catalog.pinned()) == [digest(name)]
    catalog.set_tag(Repository("docker.io", "library/another"), LATEST.value, record("old"))
    catalog.drop_tag(APP, LATEST.value)
    catalog.close()
    again = Catalog(tmp_path)
    assert list(again.pinned()) == [digest("new")]
    again.close()


async def test_eviction_passes_a_pinned_image_by(start: StartMirror, upstream: Scripted) -> None:
    """However old it is and whatever comes: and once it is unpinned, it goes like others. Pinned by another process, as a command does."""
    mirror: Mirror = await start(max_size="3500KiB")
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(1 << 20)])
    await mirror.get("/v2/app/manifests/latest")
    pinned = [*image.layers, image.config]
    for blob in pinned:
        await mirror.get(f"/v2/app/blobs/{blob}")
        await mirror.until_cached(blob)
    beside = Catalog(mirror.directory / "catalog")
    beside.pin(APP, LATEST)

    async def fill() -> None:
        for _ in range(4):
            blob = upstream.add_blob(os.urandom(1 << 20))
            for _ in range(2):
                await mirror.get(f"/v2/app/blobs/{blob}")
                await mirror.until_cached(blob)

    await fill()
    assert all(mirror.cached(blob) for blob in [*pinned, image.digest])
    beside.unpin(APP, LATEST)
    beside.close()
    await fill()
    assert not mirror.cached(image.layers[0])


async def test_a_cache_full_of_pins_passes_through(start: StartMirror, upstream: Scripted) -> None:
    """A pull never fails because nothing may be evicted."""
    mirror: Mirror = await start(max_size="2MiB")
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(1500 * 1024)])
    await mirror.get("/v2/app/manifests/latest")
    await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
    await mirror.until_cached(image.layers[0])
    beside = Catalog(mirror.directory / "catalog")
    beside.pin(APP, LATEST)
    beside.close()
    blob = upstream.add_blob(os.urandom(1 << 20))
    answer = await mirror.get(f"/v2/app/blobs/{blob}")
    assert (answer.digest(), answer.cache) == (blob, "mirror; fwd=miss; detail=not-stored")
    assert mirror.cached(image.layers[0])


async def test_pins_in_the_main_queue_leave_the_small_one_to_evict(start: StartMirror, upstream: Scripted) -> None:
    """However little is in that one: what is not pinned goes, and then the pull is passed through, or fits."""
    mirror: Mirror = await start(max_size="10MiB")
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(8 << 20)])
    await mirror.get("/v2/app/manifests/latest")
    small = upstream.add_blob(os.urandom(900_000))
    for blob in (image.layers[0], small):
        await mirror.get(f"/v2/app/blobs/{blob}")
        await mirror.until_cached(blob)
    beside = Catalog(mirror.directory / "catalog")
    beside.pin(APP, LATEST)
    with beside.changing():
        beside.queues.to_main(str(image.layers[0]), 3)
    beside.close()
    for size, detail in ((3 << 20, "detail=not-stored"), (1 << 20, "stored")):
        blob = upstream.add_blob(os.urandom(size))
        answer = await mirror.get(f"/v2/app/blobs/{blob}")
        assert (answer.digest(), answer.cache) == (blob, f"mirror; fwd=miss; {detail}")
    assert mirror.cached(image.layers[0])
    assert not mirror.cached(small)


def test_a_catalog_from_before_pins_takes_them(tmp_path: Path) -> None:
    """The tables are added to what is there."""
    Catalog(tmp_path).close()
    db = sqlite3.connect(tmp_path / "content.sqlite")
    db.executescript("DROP TRIGGER tag_pinned; DROP TABLE pin;")
    db.close()
    catalog = Catalog(tmp_path)
    catalog.pin(APP, LATEST)
    assert catalog.unpin(APP, LATEST)
    catalog.close()


def test_a_catalog_of_before_there_was_a_history_begins_one(tmp_path: Path) -> None:
    """With what each tag meant when it was last checked; and only once."""
    catalog = Catalog(tmp_path)
    catalog.set_tag(APP, LATEST.value, TagRecord(record("old").descriptor, 5.0))
    catalog.close()
    with sqlite3.connect(tmp_path / "content.sqlite") as db:
        for table in ("sighting", "held", "blocked", "ruling", "decisions"):
            db.execute(f"DROP TABLE {table}")
    db.close()
    for _ in range(2):
        catalog = Catalog(tmp_path)
        (sighting,) = catalog.sightings.of_tag(APP, LATEST.value)
        assert (sighting.digest, sighting.first, sighting.last, sighting.served) == (digest("old"), 5.0, 5.0, 5.0)
        assert catalog.tag(APP, LATEST.value) == TagRecord(record("old").descriptor, 5.0)
        catalog.close()
