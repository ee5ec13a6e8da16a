"""The endpoints of a registry that has several are measured by a pull, and the fastest comes first."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from mirror.doctor import Finding, upstreams
from mirror.doctor.findings import Level
from mirror.storage.disk.catalog.schema import FILE
from tests.doctor.conftest import of, settings
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Delay, Rate, Scripted, Status

DEAD = "http://127.0.0.1:1"
LAN = "lan.example:5000"
DEBIAN = "docker.io/library/debian:stable-slim"


async def examined(tree: dict[str, Any], urls: list[Any], key: str = "hub", **more: Any) -> list[Finding]:
    """The findings about a registry with these endpoints."""
    found = await upstreams.examine(settings(tree, **{key: {"endpoints": urls, **more}}))
    return of(found, {"hub": "docker.io", "lan": LAN}[key])


def places(found: list[Finding]) -> list[str]:
    """The endpoints that have a place in the ranking, the first first."""
    matches = [re.match(r"\d+\. (\S+): ", finding.message) for finding in found]
    return [match[1] for match in matches if match]


async def test_endpoints_are_ranked_by_a_pull(tree: dict[str, Any], upstream: Scripted) -> None:
    """With the time of each step and the rate. One that refuses the image and one that is dead have a finding each, with what to do, and are no problems."""
    image = upstream.add_image("library/debian", "stable-slim", layers=[os.urandom(200_000)])
    upstream.add_index("library/debian", "stable-slim", [image])
    upstream.fail("/manifests/", Delay(0.5), times=5, method="*")
    async with Scripted() as fast, Scripted() as refusing:
        fast.manifests, fast.blobs = upstream.manifests, upstream.blobs
        refusing.fail("/manifests/", Status(403, body=b"not in the whitelist"), times=20, method="*")
        found = await examined(tree, [upstream.url, refusing.url, DEAD, fast.url])
        assert places(found) == [fast.url, upstream.url]
        ranked = [one for one in found if one.message.startswith(("1. ", "2. "))]
        assert all(step in one.message for one in ranked for step in ("name ", "TCP ", "manifest ", "layer ", "/s", DEBIAN))
        others = [one for one in found if one.level != Level.OK]
        assert [one.level for one in others] == [Level.ADVICE, Level.ADVICE]
        assert "127.0.0.1:1" in others[0].message
        assert others[0].cure.startswith("another endpoint serves, and this one is asked last: remove it from endpoints, or ")
        assert f"{refusing.url} works, does not give out {DEBIAN}: " in others[1].message
        assert "list of the images" in others[1].message
        assert fast.count("GET", f"/blobs/{image.layers[0]}") == 1


async def test_a_single_endpoint_is_not_pulled_from(tree: dict[str, Any], upstream: Scripted) -> None:
    """A pull counts at Docker Hub, and there is nothing to rank."""
    upstream.add_image("library/debian", "stable-slim")
    await upstreams.examine(settings(tree, hub={"endpoints": [upstream.url]}))
    assert upstream.count("GET", "/library/debian/") == 0


@pytest.mark.parametrize("dead_first", [True, False])
async def test_an_endpoint_that_lacks_the_image_works(tree: dict[str, Any], upstream: Scripted, dead_first: bool) -> None:
    """A project with a few images, say: it is not to be removed. Beside one that is dead, nothing is a problem."""
    found = await examined(tree, [DEAD, upstream.url] if dead_first else [upstream.url, DEAD])
    assert [one.level for one in found].count(Level.OK) == 2
    assert f"{upstream.url} works, does not have {DEBIAN}" in [one.message for one in found if one.level == Level.OK]
    (dead,) = [one for one in found if one.level != Level.OK]
    assert (dead.level, "127.0.0.1:1" in dead.message) == (Level.ADVICE, True)
    assert upstream.count("GET", "/library/debian/manifests/") == 1


async def test_all_endpoints_dead_is_a_problem(tree: dict[str, Any], upstream: Scripted) -> None:
    """Each has one finding, and none says that another serves."""
    tree["registries"]["quay.io"] = {"endpoints": [upstream.url]}
    found = await examined(tree, [DEAD, "http://127.0.0.1:2"])
    assert [one.level for one in found] == [Level.PROBLEM] * 2
    assert not any("another endpoint" in one.cure for one in found)


async def test_endpoints_of_which_none_gives_an_image_are_a_problem(tree: dict[str, Any], upstream: Scripted) -> None:
    """Though one answers for the API's root."""
    upstream.fail("/manifests/", Status(500), times=20, method="*")
    found = await examined(tree, [DEAD, upstream.url])
    (unusable,) = [one for one in found if one.message.startswith("not usable: ")]
    assert (unusable.level, upstream.url in unusable.message) == (Level.PROBLEM, True)


async def test_an_endpoint_that_serves_images_only_works(tree: dict[str, Any], upstream: Scripted) -> None:
    """Some answer 404 for the API's root: what it is measured by counts, and its finding and the dead one's are no problems."""
    upstream.add_image("library/debian", "stable-slim")
    upstream.fail("/v2/", Status(404))
    found = await examined(tree, [DEAD, upstream.url])
    assert places(found) == [upstream.url]
    assert Level.PROBLEM not in [one.level for one in found]


async def test_the_token_has_a_figure_of_its_own(tree: dict[str, Any], upstream: Scripted) -> None:
    """Its time is not part of the manifest's. One token is enough for one endpoint."""
    upstream.add_image("library/debian", "stable-slim")
    upstream.auth = "bearer"
    upstream.fail("/token", Delay(1))
    found = await examined(tree, [upstream.url, DEAD])
    (ranked,) = [one for one in found if one.message.startswith("1. ")]
    match = re.search(r"token (\d+) ms, manifest (\d+) ms, layer ", ranked.message)
    assert match, ranked.message
    assert int(match[1]) >= 1000 > int(match[2])
    assert [asked.query.count("library/debian") for asked in upstream.asked if asked.path == "/token"].count(1) == 1


async def test_layers_are_received_one_after_another(tree: dict[str, Any], upstream: Scripted) -> None:
    """Measurements at the same time would share the line, those of another registry too."""
    for path in ("a", "b", "c"):
        upstream.add_image(f"{path}/library/debian", "stable-slim", layers=[os.urandom(300_000)])
    upstream.add_image("a/prometheus/busybox", "latest", layers=[os.urandom(300_000)])
    upstream.add_image("b/prometheus/busybox", "latest", layers=[os.urandom(300_000)])
    upstream.fail("/blobs/", Rate(1_000_000), times=5)
    tables = [{"url": upstream.url, "path": path} for path in ("a", "b", "c")]
    tree["registries"]["quay.io"] = {"endpoints": tables[:2]}
    found = await examined(tree, tables)
    assert len(places(found)) == 3
    assert upstream.count("GET", "/blobs/") == 5
    assert upstream.most_bodies == 1


async def test_the_image_is_one_that_the_cache_knows(tree: dict[str, Any], upstream: Scripted, start: StartMirror) -> None:
    """Of any registry: the tag that was pulled last among those that are large enough to show a rate. An endpoint that lacks it works."""
    upstream.add_image("team/large", "1", layers=[os.urandom(4_000_000)])
    upstream.add_image("team/large", "2", layers=[os.urandom(4_000_000)])
    upstream.add_image("team/small", "1")
    mirror: Mirror = await start(settings={"registries": {LAN: {"endpoints": [upstream.url]}}})
    for name in ("large/manifests/1", "large/manifests/2", "small/manifests/1"):
        got = await mirror.get(f"/v2/{LAN}/team/{name}")
        for digest in re.findall(rb"sha256:[0-9a-f]{64}", got.body):
            await mirror.get(f"/v2/{LAN}/team/{name.partition('/')[0]}/blobs/{digest.decode()}")
    await mirror.stop()
    upstream.asked.clear()
    async with Scripted() as other:
        found = await examined(tree, [upstream.url, other.url], "lan")
        assert places(found) == [upstream.url]
        assert f"({LAN}/team/large:2)" in next(one.message for one in found if one.message.startswith("1. "))
        assert f"{other.url} works, does not have {LAN}/team/large:2" in [one.message for one in found]
        assert (upstream.count("GET", "/manifests/"), upstream.count("GET", "/blobs/")) == (1, 1)


async def test_without_an_image_to_measure_with_it_is_said(tree: dict[str, Any], upstream: Scripted, tmp_path: Path) -> None:
    """Of a registry that the cache has nothing of, and of a cache that cannot be read; nothing is pulled, and nothing is created."""
    for catalog in (None, b"not a database" * 1000):
        if catalog is not None:
            (tmp_path / "cache" / "catalog").mkdir(parents=True)
            (tmp_path / "cache" / "catalog" / FILE).write_bytes(catalog)
        found = await examined(tree, [upstream.url, DEAD], "lan")
        assert "its endpoints are not ranked: no image of it is cached to measure them with" in [one.message for one in found]
        assert Level.PROBLEM not in [one.level for one in found]
        assert upstream.count("GET", "/manifests/") == 0


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_credentials_are_for_one_endpoint(tree: dict[str, Any], upstream: Scripted, scheme: str) -> None:
    """The first, here: the check of the others and their measurement send none, whatever they ask for."""
    upstream.add_image("library/debian", "stable-slim")
    upstream.auth, upstream.accounts = scheme, {"robot": "s3cret"}
    async with Scripted() as other:
        other.auth, other.accounts = scheme, {"robot": "s3cret"}
        found = await examined(tree, [upstream.url, other.url], username="robot", password="s3cret")
        assert places(found) == [upstream.url]
        assert any(asked.authorization for asked in upstream.asked)
        assert [asked.authorization for asked in other.asked if asked.authorization] == []


async def test_credentials_that_are_refused_are_a_problem_beside_a_good_endpoint(
    tree: dict[str, Any], upstream: Scripted
) -> None:
    """Somebody set them, and they never work."""
    upstream.auth, upstream.accounts = "basic", {"robot": "s3cret"}
    async with Scripted() as other:
        found = await examined(tree, [upstream.url, other.url], username="robot", password="hunter2")
    (wrong,) = [one for one in found if one.level == Level.PROBLEM]
    assert "answered 401 to the credentials" in wrong.message
    assert "username and password_file" in wrong.cure
