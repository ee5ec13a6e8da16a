"""An endpoint that is not the registry itself is told which registry is meant: it may be a mirror of several."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from yarl import URL

from mirror.upstream.urls import is_own
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted, Status


@pytest.mark.parametrize("path", ["", "/quay.io"])
async def test_a_mirror_of_a_mirror_serves_the_right_registry(
    start: StartMirror, upstream: Scripted, tmp_path: Path, path: str
) -> None:
    """Two registries have another image by the same name: through two mirrors in a chain each is served as its own, path in the endpoint or not."""
    async with Scripted() as quay:
        image = quay.add_image("library/app", "1", layers=[os.urandom(200_000)])
        other = upstream.add_image("library/app", "1")
        first: Mirror = await start(tmp_path / "first", settings={"registries": {"quay.io": {"endpoints": [quay.url]}}})
        second: Mirror = await start(
            tmp_path / "second",
            endpoints=[first.url],
            settings={"registries": {"quay.io": {"endpoints": [first.url + path]}}},
        )
        assert (await second.get("/v2/quay.io/library/app/manifests/1")).body == image.body
        assert (await second.head("/v2/quay.io/library/app/manifests/1")).headers["Docker-Content-Digest"] == str(image.digest)
        blob = await second.get(f"/v2/quay.io/library/app/blobs/{image.layers[0]}")
        assert blob.digest() == image.layers[0]
        assert b'"1"' in (await second.get("/v2/quay.io/library/app/tags/list")).body
        assert (await second.get(f"/v2/quay.io/library/app/referrers/{image.digest}")).status == 200
        assert upstream.asked == []
        assert (await second.get("/v2/library/app/manifests/1")).body == other.body
        assert quay.count("GET", "/manifests/1") == upstream.count("GET", "/manifests/1") == 1
        missing = await second.get("/v2/quay.io/library/absent/manifests/1")
        assert missing.status == 404
        assert upstream.count("GET", "absent") == 0


async def test_every_request_of_the_endpoint_and_no_other_says_it(start: StartMirror, upstream: Scripted) -> None:
    """Pages after the first too; what it redirects to is signed as it is, and a token service is somebody else."""
    async with Scripted() as store:
        upstream.auth, upstream.page_size, upstream.redirect_blobs_to = "bearer", 1, store
        mirror: Mirror = await start()
        image = upstream.add_image("library/app", "1")
        upstream.add_image("library/app", "2")
        store.blobs = upstream.blobs
        await mirror.get("/v2/app/manifests/1")
        await mirror.head("/v2/app/manifests/2")
        assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).status == 200
        assert b'"2"' in (await mirror.get("/v2/app/tags/list")).body
        asked = [one for one in upstream.asked if one.path != "/token"]
        assert len([one for one in asked if "/tags/" in one.path and "last=1" in one.query]) >= 1
        assert {"ns=docker.io" in one.query.split("&") for one in asked} == {True}
        assert not [one for one in upstream.asked if one.path == "/token" and "ns=" in one.query]
        assert {one.query for one in store.asked} == {"signature=secret"}


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_a_mirror_that_does_not_know_the_registry_takes_no_tag_away(
    start: StartMirror, tmp_path: Path, method: str
) -> None:
    """A registry's only endpoint is a mirror that lost it from its settings: its 404 is about that mirror. What is cached is served, and asked for again."""
    async with Scripted() as registry:
        image = registry.add_image("library/app", "1")
        tables = {"registries": {"registry.lan": {"endpoints": [registry.url]}}}
        first = await start(tmp_path / "first", settings=tables | {"server": {"listen": "127.0.0.1:0"}})
        port = int(first.url.rpartition(":")[2])
        second = await start(
            tmp_path / "second",
            settings={"registries": {"registry.lan": {"endpoints": [first.url]}}},
            tag_ttl="0s",
            negative_ttl="0s",
        )
        path = "/v2/registry.lan/library/app/manifests/1"
        assert (await second.get(path)).body == image.body
        await first.stop()
        unaware = await start(tmp_path / "first", settings={"server": {"listen": f"127.0.0.1:{port}"}})
        assert (await unaware.get("/v2/library/app/manifests/1?ns=registry.lan")).status == 404
        for _ in range(2):
            answer = await second.get(path, method)
            assert (answer.status, "stale" in answer.cache) == (200, True)
        assert b'"1"' in (await second.get("/v2/registry.lan/library/app/tags/list")).body
        assert (await second.get("/v2/registry.lan/library/app/manifests/2", method)).status == 404


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("code", ["NAME_UNKNOWN", "NAME_INVALID"])
async def test_only_a_registry_itself_knows_its_names(
    start: StartMirror, upstream: Scripted, method: str, own: bool, code: str
) -> None:
    """At its own endpoint a repository that is unknown takes its tags with it; a mirror's word of it takes none."""
    registry = f"127.0.0.1:{upstream.port}" if own else "registry.lan"
    image = upstream.add_image("library/app", "1")
    tables = {"registries": {registry: {"endpoints": [upstream.url]}}}
    mirror = await start(settings=tables, tag_ttl="0s", negative_ttl="0s")
    path = f"/v2/{registry}/library/app/manifests"
    assert (await mirror.get(f"{path}/1")).body == image.body
    upstream.fail("library", Status(404, body=b'{"errors": [{"code": "%s"}]}' % code.encode()), times=50, method="*")
    assert (await mirror.get(f"{path}/1", method)).status == (404 if own else 200)
    assert (await mirror.get(f"{path}/{image.digest}")).body == image.body
    upstream.heal()
    assert (await mirror.get(f"{path}/1", method)).status == 200


async def test_a_doubtful_404_is_passed_on_as_one(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """An ingress answers for a registry behind two mirrors: the first has nothing to serve, and the second does not take its 404 for the registry's."""
    image = upstream.add_image("library/app", "1")
    first = await start(tmp_path / "first", negative_ttl="0s")
    second = await start(tmp_path / "second", endpoints=[first.url], tag_ttl="0s", negative_ttl="0s")
    assert (await second.get("/v2/library/app/manifests/1")).body == image.body
    await first.stop()
    first = await start(tmp_path / "empty", settings={"server": {"listen": first.url.removeprefix("http://")}})
    upstream.fail("library", Status(404, {"Content-Type": "text/plain"}, b"404 page not found"), times=50, method="*")
    assert (await first.get("/v2/library/app/manifests/1")).status == 404
    assert (await second.get("/v2/library/app/manifests/1")).body == image.body
    upstream.heal()
    del upstream.manifests["library/app", "1"]
    assert (await second.get("/v2/library/app/manifests/1")).status == 404


@pytest.mark.parametrize(
    ("registry", "url", "own"),
    [
        ("docker.io", "https://registry-1.docker.io", True),
        ("docker.io", "https://docker.io", True),
        ("docker.io", "https://mirror.example/docker.io", False),
        ("quay.io", "https://quay.io:443", True),
        ("quay.io", "http://laptop:5000/quay.io", False),
        ("registry.lan:5000", "http://registry.lan:5000", True),
        ("registry.lan:5000", "http://registry.lan:5001", False),
        ("registry.lan", "http://registry.lan:5000", True),
    ],
)
def test_what_is_the_registrys_own(registry: str, url: str, own: bool) -> None:
    """By name, or by name and port; Docker Hub has a host of its own."""
    assert is_own(registry, URL(url)) is own
