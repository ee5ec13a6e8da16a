"""An endpoint that is not the registry itself is told which registry is meant: it may be a mirror of several."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from yarl import URL

from mirror.upstream.registry import is_own
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Scripted


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
