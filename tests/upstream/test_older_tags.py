"""``tags = "first"``: an endpoint that is behind does not turn a cached tag back because it answers where another one did."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from mirror.cache.tags import Tags
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Fault, Image, Raw, Scripted, Silence, Status

LATEST = "/v2/app/manifests/latest"
DATES = {
    "old": "2026-05-01T10:00:00Z",
    "older": "2026-05-01T09:00:00Z",
    "cached": "2026-05-01T13:00:00Z",
    "new": "2026-05-01T14:00:00Z",
}
_PLACEHOLDER = "1970-01-01T00:00:00Z"
_GONE = b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'
_PAGE = Status(403, {"Content-Type": "text/html"}, b"<html>not on our list</html>")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second endpoint is asked because this machine is slow."""
    monkeypatch.setattr("mirror.upstream.failover.HEAD_START", 10)


@contextlib.asynccontextmanager
async def endpoints(count: int) -> AsyncIterator[list[Scripted]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Scripted()) for _ in range(count)]


def image_of(registry: Scripted, what: str) -> Image:
    """Makes a registry name the image of that name for the tag: the same at every registry."""
    configuration = {"rootfs": {}, "created": DATES.get(what, _PLACEHOLDER), "salt": what}
    return registry.add_image("library/app", "latest", [what.encode()], configuration)


def says(registry: Scripted, what: str) -> str:
    """The same. Returns its digest."""
    return str(image_of(registry, what).digest)


def listed(*registries: Scripted, name: str = "docker.io") -> dict[str, object]:
    return {"registries": {name: {"endpoints": [registry.url for registry in registries]}}, "upstream": {"header_timeout": 80}}


async def pulled(mirror: Mirror, path: str = LATEST) -> tuple[str, bool]:
    """The digest that a tag has at the mirror, and whether it is served stale because upstream's answer does not count."""
    answer = await mirror.get(path)
    assert answer.status == 200
    return str(answer.headers["Docker-Content-Digest"]), "upstream-unavailable" in answer.cache


def tag_requests(registries: list[Scripted]) -> list[int]:
    return [sum(asked.path.endswith("/manifests/latest") for asked in registry.asked) for registry in registries]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "served", "stale", "asked"),
    [
        ("old", "cached", "cached", False, [1, 1]),
        ("old", "new", "new", False, [1, 1]),
        ("old", "older", "old", False, [1, 1]),
        ("old", "old", "old", False, [1, 1]),
        ("old", Status(404, body=_GONE), "old", False, [1, 2]),
        ("old", _PAGE, "cached", True, [1, 2]),
        ("old", Status(503), "cached", True, None),
        ("old", Raw(reset=True), "cached", True, None),
        ("cached", "old", "cached", False, [1, 0]),
        ("new", "cached", "new", False, [1, 0]),
        ("undated", "cached", "undated", False, [1, 0]),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value)[:40],
)
async def test_an_older_tag_is_not_here_and_the_next_endpoint_is_asked(
    start: StartMirror, restarted: bool, first: str, second: str | Fault, served: str, stale: bool, asked: list[int] | None
) -> None:
    """The second endpoint named the cached manifest, while the first did not know the tag. Now the first does. The older one counts only if no endpoint may have a newer one."""
    async with endpoints(2) as both:
        says(both[1], "cached")
        mirror: Mirror = await start(settings=listed(*both), tag_ttl="0s", revalidate_timeout="60s")
        await pulled(mirror)
        if restarted:
            await mirror.stop()
            mirror = await start(settings=listed(*both), tag_ttl="0s", revalidate_timeout="60s")
        digests = {what: says(both[1], what) for what in (*DATES, "undated")}
        says(both[0], first)
        if isinstance(second, str):
            says(both[1], second)
        else:
            both[1].fail("/manifests/latest", second, times=50, method="*")
        before = tag_requests(both)
        assert await pulled(mirror) == (digests[served], stale)
        if asked is not None:
            assert [now - then for now, then in zip(tag_requests(both), before, strict=True)] == asked


async def test_nothing_is_compared_while_one_endpoint_answers(start: StartMirror) -> None:
    """Whatever it says, forward or back: its own word has changed. One HEAD a check, and one document more for what is new."""
    async with endpoints(2) as both:
        mirror: Mirror = await start(settings=listed(*both), tag_ttl="0s", revalidate_timeout="60s")
        for count, what in enumerate(("cached", "new", "new", "old", "undated", "older")):
            digest = says(both[0], what)
            assert await pulled(mirror) == (digest, False)
            assert both[0].count("HEAD") == count
        assert both[0].count("GET", "/manifests/") == 5
        assert both[0].count("GET", "/blobs/") == 0
        assert not both[1].asked


async def test_it_goes_on_until_one_is_not_older(start: StartMirror) -> None:
    """Each endpoint is asked once for the tag, at each check; the documents that are compared are fetched once."""
    async with endpoints(4) as four:
        digest = says(four[3], "cached")
        mirror: Mirror = await start(settings=listed(*four), tag_ttl="0s", revalidate_timeout="60s")
        assert await pulled(mirror) == (digest, False)
        older = {0: image_of(four[0], "old"), 2: image_of(four[2], "older")}
        four[1].fail("/v2/", _PAGE, times=50, method="*")
        for registry in four:
            registry.asked.clear()
        for checks in (1, 2, 3):
            assert await pulled(mirror) == (digest, False)
            assert [four[number].count("HEAD") for number in (0, 2, 3)] == [checks] * 3
        for number, image in older.items():
            for content in (image.digest, image.config):
                assert four[number].count("GET", str(content)) == 1


@pytest.mark.parametrize("position", [0, 1])
async def test_the_registrys_own_word_counts_whatever_its_age(start: StartMirror, upstream: Scripted, position: int) -> None:
    """A release that was taken back is gone from the mirror at the next check, though another endpoint still has it, and whether one before it has the old one too."""
    async with endpoints(1) as (other,):
        both = [other, other]
        both[position] = upstream
        digest = says(other, "cached")
        name = upstream.url.removeprefix("http://")
        path = f"/v2/{name}/library/app/manifests/latest"
        mirror: Mirror = await start(settings=listed(*both, name=name), tag_ttl="0s", revalidate_timeout="60s")
        if position == 0:
            upstream.fail("/v2/", Status(503), times=50, method="*")
        assert await pulled(mirror, path) == (digest, False)
        await mirror.stop()
        upstream.heal()
        mirror = await start(settings=listed(*both, name=name), tag_ttl="0s", revalidate_timeout="60s")
        own = says(upstream, "older")
        if position == 1:
            says(other, "old")
        assert await pulled(mirror, path) == (own, False)


@pytest.mark.parametrize("fault", [Status(404, body=_GONE), Status(500), Raw(), Silence()])
async def test_an_endpoint_that_does_not_give_what_it_names_turns_nothing_back(start: StartMirror, fault: Fault) -> None:
    """Nothing can be said of its age; the cached image is served."""
    async with endpoints(2) as both:
        digest = says(both[1], "cached")
        settings = listed(*both) | {"upstream": {"header_timeout": 2}}
        mirror: Mirror = await start(settings=settings, tag_ttl="0s", revalidate_timeout="60s")
        assert await pulled(mirror) == (digest, False)
        says(both[0], "old")
        for method in ("GET", "HEAD"):
            both[0].fail("/manifests/sha256", fault, times=50, method=method)
        both[0].fail("/manifests/latest", fault, times=50, method="GET")
        assert (await pulled(mirror))[0] == digest


@pytest.mark.parametrize("tags", ["first", "newest"])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("fault", [Status(404, body=_GONE), _PAGE, Status(500)], ids=["404", "403", "500"])
async def test_a_newer_one_that_is_named_and_not_given_does_not_let_an_older_one_in(
    start: StartMirror, tmp_path: Path, fault: Fault, guarded: bool, tags: str
) -> None:
    """The first endpoint names a new manifest and gives none; the others have an old one, then one of them has the new one. What is cached is served until then."""
    async with endpoints(3) as three:
        for registry in three:
            cached = says(registry, "cached")
        settings = listed(*three)
        settings["registries"] = {"docker.io": {"endpoints": [registry.url for registry in three], "tags": tags}}
        if guarded:
            (tmp_path / "list").write_text(f"sha256:{'0' * 64} another image\n")
            settings["guard"] = [{"name": "list", "blocklist": [str(tmp_path / "list")]}]
        mirror: Mirror = await start(settings=settings, tag_ttl="0s", revalidate_timeout="60s")
        assert await pulled(mirror) == (cached, False)
        new = says(three[0], "new")
        three[0].fail("/manifests/sha256", fault, times=50, method="*")
        three[0].fail("/manifests/latest", fault, times=50, method="GET")
        says(three[1], "old")
        says(three[2], "older")
        assert (await pulled(mirror))[0] == cached
        says(three[2], "new")
        assert (await pulled(mirror))[0] == new


async def test_after_a_day_the_older_one_counts(start: StartMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be meant, and the endpoint that had the newer one gone for good."""
    moved = 0.0
    monkeypatch.setattr("mirror.cache.cache.Tags", partial(Tags, clock=lambda: time.time() + moved))
    async with endpoints(2) as both:
        image = image_of(both[1], "cached")
        cached = str(image.digest)
        mirror: Mirror = await start(settings=listed(*both), tag_ttl="0s", revalidate_timeout="60s")
        assert await pulled(mirror) == (cached, False)
        assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200
        old = says(both[0], "old")
        await both[1].stop()
        assert await pulled(mirror) == (cached, True)
        await mirror.stop()
        moved = 86400.0
        mirror = await start(settings=listed(*both), tag_ttl="0s", revalidate_timeout="60s")
        assert await pulled(mirror) == (old, False)


async def test_several_ways_to_one_place_are_one_endpoint(start: StartMirror, upstream: Scripted) -> None:
    """A registry that is listed directly and by a proxy may take a release back: it is its own word, by whichever way."""
    settings = {"registries": {"docker.io": {"endpoints": [{"url": upstream.url, "proxy": "none"}, {"url": upstream.url}]}}}
    says(upstream, "cached")
    mirror: Mirror = await start(settings=settings, tag_ttl="0s", revalidate_timeout="60s")
    await pulled(mirror)
    await mirror.stop()
    mirror = await start(settings=settings, tag_ttl="0s", revalidate_timeout="60s")
    old = says(upstream, "old")
    assert await pulled(mirror) == (old, False)
    assert upstream.count("HEAD") == 1
