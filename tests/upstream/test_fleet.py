"""Ten endpoints, of which nine are dead, slow, or lie: pulls succeed, and cost no more than those of the good one."""

from __future__ import annotations

import os

from tests.support.fleet import fleet
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Image, Scripted

_MANY = 3000
"""Tags, enough to ask for until a pause is over."""


async def pull(mirror: Mirror, image: Image, repository: str, tag: str) -> None:
    """As a client does: the tag, the manifest, the config and the layers."""
    head = await mirror.head(f"/v2/{repository}/manifests/{tag}")
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.get(f"/v2/{repository}/manifests/{image.digest}")).body == image.body
    for digest in (image.config, *image.layers):
        assert (await mirror.get(f"/v2/{repository}/blobs/{digest}")).digest() == digest


async def test_the_first_pull_succeeds_and_later_ones_ask_the_good_endpoint_alone(start: StartMirror) -> None:
    """Of a list in which the good endpoint is the ninth; a stale tag after it does not count. Nothing wrong is cached."""
    async with fleet() as found:
        first = found.good.add_image("library/app", "1", layers=[os.urandom(300_000)])
        second = found.good.add_image("library/app", "2", layers=[os.urandom(300_000)])
        for tag in ("1", "2"):
            found.bad["stale"].add_image("library/app", tag)
        found.bad["wrong"].manifests |= found.good.manifests
        found.bad["wrong"].blobs |= found.good.blobs
        mirror: Mirror = await start(endpoints=found.urls)
        await pull(mirror, first, "library/app", "1")
        asked = found.asked()
        assert all(count <= 4 for count in asked.values()), asked
        await pull(mirror, second, "library/app", "2")
        assert found.asked() == asked


async def test_endpoints_that_refused_three_repositories_are_asked_last_for_others(start: StartMirror) -> None:
    """So that a list of mirrors with allow-lists costs nothing once it is known."""
    async with fleet() as found:
        images = [found.good.add_image(f"library/app{number}", "1") for number in range(4)]
        found.bad["wrong"].manifests |= found.good.manifests
        mirror: Mirror = await start(endpoints=found.urls)
        for number, image in enumerate(images[:3]):
            await pull(mirror, image, f"library/app{number}", "1")
        asked = found.asked()
        await pull(mirror, images[3], "library/app3", "1")
        assert found.asked() == asked


async def test_an_endpoint_that_is_well_again_is_asked_first_again(start: StartMirror, upstream: Scripted) -> None:
    """A probe behind a client's request finds out; no client waits for it."""
    async with Scripted() as second:
        image = second.add_image("library/app", "first")
        for number in range(_MANY):
            for registry in (upstream, second):
                registry.add_manifest("library/app", str(number), image.body)
        await upstream.stop()
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        assert (await mirror.get("/v2/app/manifests/first")).status == 200
        await upstream.start()
        tags = iter(range(_MANY))
        while not upstream.asked:
            assert (await mirror.get(f"/v2/app/manifests/{next(tags)}")).status == 200
        probe = upstream.asked[0].path.rpartition("/")[2]
        assert second.count("GET", f"/{probe}") == 1
        while True:
            before, tag = len(second.asked), next(tags)
            assert (await mirror.get(f"/v2/app/manifests/{tag}")).status == 200
            if len(second.asked) == before:
                break
        assert upstream.count("GET", f"/{tag}") == 1
