"""What the inventory says of repositories, of downloads under way, and of images' configurations."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from mirror.names import Repository, Tag
from mirror.storage.disk.catalog.inventory import Inventory
from mirror.storage.image_config import parse_config
from mirror.storage.inventory import ORDERS
from tests.cache.test_inventory import pull, serve
from tests.support.filled import fill
from tests.support.images import make_index
from tests.support.mirrors import Mirror
from tests.support.scripted import Scripted

APP = Repository("docker.io", "library/app")


async def test_repositories_are_listed_with_their_tags_and_what_they_take_together(mirror: Mirror, upstream: Scripted) -> None:
    """A layer that two tags share counts once; another repository with it has a line of its own."""
    shared, own = os.urandom(5000), os.urandom(700)
    for path, tag, layers in (("library/app", "1", [shared]), ("library/app", "2", [shared, own]), ("team/other", "1", [shared])):
        image = upstream.add_image(path, tag, layers=layers)
        await mirror.get(f"/v2/{path}/manifests/{tag}")
        for layer in image.layers:
            await mirror.get(f"/v2/{path}/blobs/{layer}")
            await mirror.until_cached(layer)
    await mirror.stop()
    with closing(Inventory(mirror.directory)) as inventory:
        for order in ORDERS:
            page = inventory.repositories(order)
            assert page.total == 2
            lines = {str(line.repository): line for line in page.entries}
            app = lines["docker.io/library/app"]
            assert (app.images, sorted(app.names), app.pulls, app.pinned) == (2, [":1", ":2"], 2, 0)
            assert 5700 < app.size < 5000 * 2
        assert inventory.repositories("size").entries[0].repository == APP
        assert inventory.repositories("name", 2, 2).total == 2
        assert inventory.repositories("name", 1, 1).entries[0].repository.path == "team/other"
        assert [image.reference for image in inventory.images(repository=APP).entries] == [Tag("1"), Tag("2")]
        assert {pulled.image for pulled in inventory.most_pulled(2)} < {
            f"docker.io/{name}" for name in ("library/app:1", "library/app:2", "team/other:1")
        }


def test_a_page_of_many_repositories_names_some_tags_of_each(tmp_path: Path) -> None:
    """And counts them all."""
    fill(tmp_path, 40)
    with closing(Inventory(tmp_path)) as inventory:
        page = inventory.repositories("pulled", 1, 2)
        assert (page.total, len(page.entries)) == (4, 2)
        for line in page.entries:
            assert (line.images, len(line.names), line.platforms) == (10, 6, ("linux/amd64",))


async def test_a_blob_under_way_belongs_to_the_image_that_has_most_of_them(mirror: Mirror, upstream: Scripted) -> None:
    """Told by the tag that leads to it, through an index too, with the sizes of all of its blobs; what no manifest names is left out."""
    image = make_index(7)
    serve(upstream, "library/app", "edge", image)
    await pull(mirror, "library/app", "edge", image)
    other = upstream.add_image("library/app", "old", layers=[os.urandom(10)])
    await mirror.get("/v2/app/manifests/old")
    with closing(Inventory(mirror.directory)) as inventory:
        inventory.learn()
        body = next(body for _, body in image.manifests if b"layers" in body)
        named = [layer["digest"] for layer in json.loads(body)["layers"]]
        found = inventory.under_way(APP, [*named, str(other.layers[0]), f"sha256:{0:064x}"])
        assert set(found) == {*named, str(other.layers[0])}
        assert {found[digest].image for digest in named} == {"docker.io/library/app:edge"}
        assert found[named[0]].platform == "linux/amd64"
        assert found[named[0]].blobs[named[0]] == len(image.blobs[named[0]])
        assert set(named) <= found[named[0]].cached
        assert found[str(other.layers[0])].image == "docker.io/library/app:old"
        assert str(other.layers[0]) not in found[str(other.layers[0])].cached
        assert inventory.under_way(Repository("quay.io", "library/app"), named) == {}


async def test_an_images_configuration_is_shown_where_it_is_cached(mirror: Mirror, upstream: Scripted) -> None:
    """How it runs, when it was made, and the command behind each layer."""
    image = make_index(8)
    serve(upstream, "library/app", "1", image)
    await pull(mirror, "library/app", "1", image)
    with closing(Inventory(mirror.directory)) as inventory:
        details = inventory.image(APP, Tag("1"))
    assert details is not None
    cached, missing = details.variants
    assert missing.settings is None
    assert cached.settings is not None
    assert cached.settings.command == ("/bin/true",)
    assert cached.settings.layer_commands == ("layer 0", "layer 1", "layer 2")
    assert cached.settings.created == 1704067200.0


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"rootfs": []}'],
)
def test_what_is_no_images_configuration_says_nothing(config: bytes) -> None:
    """Helm charts and attestations have other ones."""
    assert parse_config(config) is None


def test_fields_that_make_no_sense_are_left_out() -> None:
    """Whatever a registry sends, the rest is shown, within bounds."""
    whole = {
        "rootfs": {},
        "created": "yesterday",
        "author": 7,
        "config": {
            "Env": ["A=1=2", 5, "B"],
            "Labels": {"x": "y", "z": None},
            "Cmd": "sh",
            "ExposedPorts": {"80/tcp": {}},
            "User": "u" * 9000,
        },
        "history": [
            {"created_by": '/bin/sh -c #(nop)  CMD ["sh"]', "empty_layer": True, "created": "0001-01-01T00:00:00Z"},
            {"created_by": "RUN /bin/sh -c make # buildkit"},
            {"comment": "imported"},
            "nothing",
            *({"created_by": "more"} for _ in range(1000)),
        ],
    }
    config = parse_config(json.dumps(whole).encode())
    assert config is not None
    assert (config.created, config.author, config.command, config.ports) == (None, "", (), ("80/tcp",))
    assert config.environment == (("A", "1=2"), ("B", ""))
    assert config.labels == (("x", "y"),)
    assert len(config.user) == 4000
    assert [step.command for step in config.history[:3]] == ['CMD ["sh"]', "RUN /bin/sh -c make", "imported"]
    assert len(config.history) == 199
    for field in ("config", "history"):
        assert parse_config(json.dumps({"rootfs": {}, field: 3}).encode()) is not None
