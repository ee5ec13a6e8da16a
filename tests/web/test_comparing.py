"""What changed between two images of a tag, on the image's page: also of one that clients do not get yet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mirror.units import format_size
from tests.support.dashboard import HTML, log_in
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Image, Scripted, Status

LATEST = "/v2/app/manifests/latest"
PAGE = "/image/docker.io/library/app:latest"
GUARD: dict[str, Any] = {"guard": [{"name": "cool", "cooldown": "3d"}]}


def described(entrypoint: str, created: str) -> dict[str, Any]:
    config = {"Entrypoint": [entrypoint], "Env": [f"A={entrypoint}"], "Labels": {entrypoint: "x"}}
    return {"config": config, "created": created, "rootfs": {"type": "layers"}}


async def cache_whole(mirror: Mirror, image: Image) -> None:
    for path in (f"manifests/{image.digest}", f"blobs/{image.config}", *(f"blobs/{layer}" for layer in image.layers)):
        assert (await mirror.get(f"/v2/app/{path}")).status == 200
    for blob in (image.config, *image.layers):
        await mirror.until_cached(blob)


async def page(mirror: Mirror, query: str = "") -> str:
    return (await mirror.get(f"{PAGE}{query}", Accept_Language="en", **HTML)).body.decode()


def asked(upstream: Scripted) -> int:
    return upstream.count("GET") + upstream.count("HEAD")


async def test_a_person_sees_what_is_held_back_before_anybody_gets_it(start: StartMirror, upstream: Scripted) -> None:
    """Two small requests when somebody asks, by a link of either page, and once however many do; no layer, and nothing of it in the cache: clients go on as before."""
    mirror = await start(tag_ttl=0, settings=GUARD)
    old = upstream.add_image(
        "library/app", "latest", layers=[b"a" * 1000], configuration=described("old", "2026-11-30T08:00:00Z")
    )
    assert (await mirror.get(LATEST)).status == 200
    await cache_whole(mirror, old)
    new = upstream.add_image(
        "library/app", "latest", layers=[b"b" * 2000, b"c" * 3000], configuration=described("new", "2026-11-30T09:30:00Z")
    )
    assert (await mirror.get(LATEST)).digest() == old.digest
    before = asked(upstream)
    plain = await page(mirror)
    assert "What would it change?" in plain
    assert "entrypoint: new" not in plain
    guards = (await mirror.get("/guards", Cookie=await log_in(mirror), **HTML)).body.decode()
    assert f'href="{PAGE}?compare=1#timeline"' in guards
    assert asked(upstream) == before
    found = [*await asyncio.gather(page(mirror, "?compare=1"), page(mirror, "?compare=1")), await page(mirror, "?compare=1")]
    for text in found:
        for change in (
            "2 of 2 layers are new",
            f"{format_size(1000)} before, {format_size(5000)} now",
            "built on 2026-11-30 09:30 UTC, the one before on 2026-11-30 08:00 UTC",
            "entrypoint: new, before: old",
            "environment: A",
            "labels: +new, -old",
        ):
            assert change in text.replace("\u00a0", " "), change
        assert "What would it change?" not in text
    assert asked(upstream) == before + 2
    assert (upstream.count("GET", str(new.digest)), upstream.count("GET", str(new.config))) == (1, 1)
    assert not any(upstream.count("GET", str(layer)) for layer in new.layers)
    assert not any(mirror.cached(digest) for digest in (new.digest, new.config, *new.layers))
    assert (await mirror.get(LATEST)).digest() == old.digest


async def test_of_an_index_the_platforms_are_compared_that_are_served(start: StartMirror, upstream: Scripted) -> None:
    """Only those: of three in the new index, the one whose configuration is here."""
    mirror = await start(tag_ttl=0, settings=GUARD)
    times = ("2026-11-28T08:00:00Z", "2026-11-30T09:30:00Z")
    images = [
        [
            upstream.add_image("library/app", configuration=described(f"{name}-{arch}", made))
            for arch in ("amd64", "arm64", "s390x")
        ]
        for name, made in zip(("old", "new"), times, strict=True)
    ]
    first, _ = upstream.add_index("library/app", "latest", images[0])
    assert (await mirror.get(LATEST)).digest() == first
    await cache_whole(mirror, images[0][1])
    second, _ = upstream.add_index("library/app", "latest", images[1])
    assert (await mirror.get(LATEST)).digest() == first
    before = asked(upstream)
    text = await page(mirror, "?compare=1")
    assert "entrypoint: new-arm64, before: old-arm64" in text
    assert "built on 2026-11-30, the one before on 2026-11-28" in text
    assert '<span class="chip">arm64</span>' in text.partition('id="timeline"')[2]
    assert "new-amd64" not in text
    wanted = (second, images[1][1].digest, images[1][1].config)
    assert asked(upstream) == before + len(wanted)
    assert [upstream.count("GET", str(digest)) for digest in wanted] == [1, 1, 1]


@pytest.mark.parametrize("offline", [False, True], ids=["away", "offline"])
async def test_what_cannot_be_had_is_said(start: StartMirror, upstream: Scripted, offline: bool) -> None:
    """Where the registry is away, or nobody may be asked, the page is there, and says so."""
    mirror = await start(tag_ttl=0, settings=GUARD)
    old = upstream.add_image("library/app", "latest", configuration=described("old", "2026-11-30T08:00:00Z"))
    assert (await mirror.get(LATEST)).status == 200
    await cache_whole(mirror, old)
    new = upstream.add_image("library/app", "latest", configuration=described("new", "2026-11-30T09:30:00Z"))
    assert (await mirror.get(LATEST)).digest() == old.digest
    if offline:
        await mirror.stop()
        mirror = await start(mirror.directory, settings={**GUARD, "upstream": {"offline": True}})
    else:
        upstream.fail(str(new.digest), Status(503), times=20)
    before = asked(upstream)
    assert ("What would it change?" in await page(mirror)) != offline
    text = await page(mirror, "?compare=1")
    assert "What it would change cannot be said" in text
    assert (asked(upstream) == before) == offline
