"""What the inventory says of the cache."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mirror.cache.freshness import is_fresh
from mirror.names import Digest, Repository, Tag
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.inventory import ORDERS, Image
from tests.support.filled import PLATFORMS, each, fill
from tests.support.images import Image as Made
from tests.support.images import make_image, make_index
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.scripted import Scripted

APP = Repository("docker.io", "library/app")


def serve(upstream: Scripted, repository: str, tag: str, image: Made) -> None:
    """Gives the scripted registry an image."""
    for data in image.blobs.values():
        upstream.add_blob(data)
    for number, (media_type, body) in enumerate(image.manifests):
        upstream.add_manifest(repository, tag if number == len(image.manifests) - 1 else None, body, media_type)


async def pull(mirror: Mirror, repository: str, tag: str, image: Made, architecture: str = "amd64") -> None:
    """As a client does."""
    await mirror.head(f"/v2/{repository}/manifests/{tag}")
    await mirror.get(f"/v2/{repository}/manifests/{image.digest}")
    for _, body in image.manifests:
        digest = Digest.of(body)
        if str(digest) != image.digest and architecture.encode() not in b"".join(
            data for name, data in image.blobs.items() if name.encode() in body and data.startswith(b'{"architecture"')
        ):
            continue
        await mirror.get(f"/v2/{repository}/manifests/{digest}")
        for name in image.blobs:
            if name.encode() in body:
                await mirror.get(f"/v2/{repository}/blobs/{name}")
                await mirror.until_cached(Digest.parse(name))


@pytest.fixture
def ask(mirror: Mirror) -> Iterator[Inventory]:
    """An inventory beside the running mirror."""
    with closing(Inventory(mirror.directory)) as inventory:
        yield inventory


async def test_an_image_is_listed_with_what_is_cached_of_it(mirror: Mirror, upstream: Scripted, ask: Inventory) -> None:
    """Of an index the pulled platform alone; sizes are those of the files; it says when it came and was pulled."""
    image = make_index(1)
    serve(upstream, "library/app", "1", image)
    began = time.time()
    await pull(mirror, "app", "1", image)
    await until(lambda: ask.images().entries[0].missing == 0)
    page = ask.images()
    assert page.total == 1
    (found,) = page.entries
    assert str(found) == "docker.io/library/app:1"
    assert (found.repository, found.reference, str(found.digest)) == (APP, Tag("1"), image.digest)
    assert found.platforms == ("linux/amd64",)
    one = make_image(1)
    assert found.size == sum(map(len, one.blobs.values())) + len(one.manifests[-1][1]) + len(image.manifests[-1][1])
    assert found.shared == 0
    assert not found.pinned
    assert began - 1 <= found.fetched <= time.time()
    assert found.checked is not None and is_fresh(found.checked, 300)
    assert not is_fresh(found.checked, 300, found.checked + 301)
    await until(lambda: ask.images().entries[0].pulls == 1)
    pulled = ask.images().entries[0].pulled
    assert pulled is not None and began <= pulled <= time.time()


async def test_a_manifest_without_its_blobs_is_incomplete(mirror: Mirror, upstream: Scripted, ask: Inventory) -> None:
    """Its size is that of the manifest, what is missing is counted, and its platform is known once its configuration comes."""
    image = make_image(1)
    serve(upstream, "library/app", "1", image)
    await mirror.get("/v2/app/manifests/1")
    (found,) = ask.images().entries
    assert (found.size, found.missing, found.platforms) == (len(image.manifests[0][1]), 4, ())
    config = next(name for name, data in image.blobs.items() if data.startswith(b'{"architecture"'))
    await mirror.get(f"/v2/app/blobs/{config}")
    await until(lambda: ask.images().entries[0].platforms == ("linux/amd64",))
    assert ask.images().entries[0].missing == 3


async def test_sharing_is_seen_from_both_sides(mirror: Mirror, upstream: Scripted, ask: Inventory) -> None:
    """Two images with a layer in common share its bytes, whichever came first; two tags of one image share nothing."""
    layer = os.urandom(5000)
    for name in ("one", "two"):
        made = upstream.add_image(f"library/{name}", "latest", layers=[layer, os.urandom(1000)])
        upstream.add_manifest(f"library/{name}", "same", made.body)
        for reference in ("latest", "same"):
            await mirror.get(f"/v2/{name}/manifests/{reference}")
        for blob in (*made.layers, made.config):
            await mirror.get(f"/v2/{name}/blobs/{blob}")
            await mirror.until_cached(blob)
    await until(lambda: not any(image.missing for image in ask.images().entries))
    found = {str(image): image for image in ask.images().entries}
    assert sorted(found) == [f"docker.io/library/{name}:{tag}" for name in ("one", "two") for tag in ("latest", "same")]
    assert {image.shared for image in found.values()} == {5000}
    details = ask.image(Repository("docker.io", "library/one"), Tag("latest"))
    assert details is not None
    assert {(other.image, other.size) for other in details.neighbours} == {
        (f"docker.io/library/two:{tag}", 5000) for tag in ("latest", "same")
    }
    assert [layer.images for layer in details.variants[0].layers] == [2, 1]


async def test_an_image_is_taken_apart(mirror: Mirror, upstream: Scripted, ask: Inventory) -> None:
    """Every platform that the index lists, cached or not; of those that are, the layers in order."""
    image = make_index(1)
    serve(upstream, "library/app", "1", image)
    await pull(mirror, "app", "1", image)
    await until(lambda: ask.images().entries[0].missing == 0)
    details = ask.image(APP, Tag("1"))
    assert details is not None
    assert [(part.platform, part.cached, part.complete) for part in details.variants] == [
        ("linux/amd64", True, True),
        ("linux/arm64", False, False),
    ]
    one = make_image(1)
    assert [str(layer.descriptor.digest) for layer in details.variants[0].layers] == list(one.blobs)[:-1]
    config = details.variants[0].config
    assert config is not None
    assert str(config.descriptor.digest) == list(one.blobs)[-1]
    assert ask.image(APP, Digest.parse(image.digest)) == details
    assert ask.image(APP, Tag("2")) is None
    with closing(Catalog(mirror.directory / "catalog")) as catalog:
        catalog.forget([config.descriptor.digest], lambda _: True)
    details = ask.image(APP, Tag("1"))
    assert details is not None
    assert not details.variants[0].complete, "no client pulls an image without its configuration"


async def test_a_tag_that_moves_leaves_an_untagged_image(start: StartMirror, upstream: Scripted) -> None:
    """It is listed by its digest; the manifests of an index are no images of their own."""
    mirror: Mirror = await start(tag_ttl=0)
    old, new = make_image(1), make_index(2)
    serve(upstream, "library/app", "1", old)
    await pull(mirror, "app", "1", old)
    serve(upstream, "library/app", "1", new)
    await pull(mirror, "app", "1", new)
    with closing(Inventory(mirror.directory)) as ask:
        assert [str(image) for image in ask.images().entries] == [
            "docker.io/library/app:1",
            f"docker.io/library/app@{old.digest}",
        ]
        assert ask.images(old.digest[:20]).total == 1
        assert is_fresh(ask.images().entries[1].checked, 0)


async def test_what_goes_is_gone_from_the_inventory(mirror: Mirror, upstream: Scripted, ask: Inventory) -> None:
    """A blob that is evicted is missing, an image whose manifest is gone is no more, and one that comes again is there again."""
    image = make_index(1)
    serve(upstream, "library/app", "1", image)
    await pull(mirror, "app", "1", image)
    await until(lambda: ask.images().entries[0].missing == 0)
    before = ask.images()
    one = make_image(1)
    with closing(Catalog(mirror.directory / "catalog")) as catalog:
        layer = Digest.parse(next(iter(one.blobs)))
        catalog.forget([layer], lambda _: True)
        (found,) = ask.images().entries
        assert found.missing == 1
        assert before.entries[0].size - found.size == len(one.blobs[str(layer)])
        catalog.add(layer, len(one.blobs[str(layer)]))
        assert ask.images().entries[0].size == before.entries[0].size
        catalog.forget([Digest.parse(one.digest)], lambda _: True)
        assert ask.images().entries[0].platforms == ()
        assert ask.images().entries[0].size == len(image.manifests[-1][1])
        catalog.forget([Digest.parse(image.digest)], lambda _: True)
        assert ask.images().total == 0
        assert ask.totals().images == 0


async def test_pins_are_shown(mirror: Mirror, upstream: Scripted, ask: Inventory) -> None:
    """By the very name that was pinned."""
    upstream.add_image("library/app", "1")
    await mirror.get("/v2/app/manifests/1")
    with closing(Catalog(mirror.directory / "catalog")) as catalog:
        catalog.pin(APP, Tag("1"))
    assert ask.images().entries[0].pinned
    assert ask.totals().pinned == 1


async def test_the_totals_count_traffic_over_restarts(start: StartMirror, upstream: Scripted) -> None:
    """Requests, hits and bytes, as the metrics count them; what hits sent is what was saved."""
    image = upstream.add_image("library/app", "1", layers=[os.urandom(100_000)])
    for _ in range(2):
        mirror: Mirror = await start()
        for _ in range(2):
            await mirror.get("/v2/app/manifests/1")
            await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
            await mirror.until_cached(image.layers[0])
        await mirror.stop()
    with closing(Inventory(mirror.directory)) as ask:
        totals = ask.totals()
    size = 100_000 + len(image.body)
    assert (totals.traffic.requests, totals.traffic.hits) == (8, 6)
    assert (totals.traffic.fetched, totals.traffic.sent, totals.traffic.saved) == (size, 4 * size, 3 * size)
    assert (totals.images, totals.repositories, totals.manifests, totals.blobs) == (1, 1, 1, 1)
    assert totals.size == size


def test_pages_searches_and_orders(tmp_path: Path) -> None:
    """A page is a part of the whole list; every word must fit; each order is one; what lies behind the end is empty."""
    fill(tmp_path, 40)
    with closing(Inventory(tmp_path)) as ask:
        whole = ask.images()
        assert [str(image) for image in whole.entries] == sorted(each(40))
        assert whole.total == 40
        assert ask.images(start=10, count=7).entries == whole.entries[10:17]
        assert ask.images(start=100, count=7) == type(whole)((), 40)
        assert [str(image) for image in ask.images("APP-2 1.3").entries] == ["docker.io/library/app-2:1.3"]
        assert ask.images("app-2 1.3 " * 50).entries == ask.images("1.3 app-2").entries != ()
        assert ask.images("app-2 nothing").total == 0
        assert ask.images("100% _ '").total == 0
        keys: dict[str, Callable[[Image], Any]] = {
            "pulled": lambda image: image.pulled,
            "fetched": lambda image: image.fetched,
            "size": lambda image: image.size,
            "pinned": lambda image: image.pinned or image.listed,
        }
        for order, key in keys.items():
            values = [key(image) for image in ask.images(order=order).entries]
            assert values == sorted(values, reverse=True), order
        assert set(keys) | {"name"} == set(ORDERS)
        for image in whole.entries:
            assert image.platforms == PLATFORMS[:1]
            assert 0 < image.shared < image.size
            assert image.missing == 0


def test_a_cache_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    """One without any of the inventory's tables shows the same, once opened."""
    fill(tmp_path, 20)
    with closing(Inventory(tmp_path)) as ask:
        before = ask.images()
    with closing(sqlite3.connect(tmp_path / "catalog" / "content.sqlite")) as db:
        triggers = ("item_in", "item_typed", "item_out", "manifest_out")
        db.executescript("".join(f"DROP TRIGGER {name};" for name in triggers) + "DROP TABLE item; DROP TABLE part;")
    with closing(Inventory(tmp_path)) as ask:
        assert ask.images() == before


def test_files_that_make_no_sense_do_no_harm(tmp_path: Path) -> None:
    """A manifest whose file is gone, or is not what it was, is listed without what it would tell."""
    fill(tmp_path, 2)
    with closing(sqlite3.connect(tmp_path / "catalog" / "content.sqlite")) as db:
        digests = [row[0] for row in db.execute("SELECT digest FROM tag ORDER BY path, tag")]
    folder = tmp_path / "blobs" / "sha256"
    (folder / digests[0].split(":")[1]).unlink()
    (folder / digests[1].split(":")[1]).write_bytes(b'{"manifests": [1, {"digest": 5}, {"platform": {"os": ["x"]}}]')
    with closing(Inventory(tmp_path)) as ask:
        assert len(ask.images().entries) == 2
        details = ask.image(Repository("docker.io", "library/app-0"), Tag("1.1"))
        assert details is not None
        assert details.variants == ()
