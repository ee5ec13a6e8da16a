"""What keeps mirrors that ask each other from waiting for each other, from fetching too much, and from believing too much."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.cdn_loop import CHILD, PEER, Passed, parse
from mirror.config import ConfigError, load
from mirror.names import Digest
from mirror.upstream.fleet import ranked
from tests.support.members import StartMembers, start_mutual_parents
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.scripted import Hold, Scripted, Status

MIB = 1024 * 1024
BY_PEER = {"CDN_Loop": "other.lan:5000; mirror=peer"}
BY_CHILD = {"CDN_Loop": "other.lan:5000; mirror=child"}


def of(blob: Digest) -> str:
    return f"/v2/library/app/blobs/{blob}"


@pytest.fixture
async def place() -> AsyncIterator[Scripted]:
    """Another mirror of the fleet."""
    async with Scripted() as scripted:
        scripted.blob_headers = scripted.extra_headers = {"Cache-Status": "mirror; fwd=miss; stored"}
        yield scripted


def fleet_of(own: str, *others: str, **more: Any) -> dict[str, Any]:
    return {"server": {"listen": own.removeprefix("http://")}, "fleet": {"mirrors": [own, *others], "own": own, **more}}


async def with_place(start: StartMirror, place: Scripted, **cache: Any) -> tuple[Mirror, str]:
    own = f"http://127.0.0.1:{free_port()}"
    return await start(settings=fleet_of(own, place.url), **cache), own


def homed(home: str, other: str, size: int = 1000) -> bytes:
    """A blob whose home is one mirror rather than the other."""
    while ranked((home, other), str(Digest.of(data := os.urandom(size))))[0] != home:
        pass
    return data


# ------------------------------------------------------------------ chains


async def test_who_is_asked_by_a_mirror_of_the_fleet_asks_none_and_prefetches_nothing(
    start: StartMirror, place: Scripted, upstream: Scripted
) -> None:
    """Chains have a length of one, whatever the lists say, and what the client of another mirror may want is that one's affair. A client's own request goes the usual way."""
    mirror, own = await with_place(start, place, prefetch=True)
    layers = [homed(place.url, own) for _ in range(3)]
    image = upstream.add_image("library/app", "1", layers=layers)
    for layer in layers:
        place.add_blob(layer)
    assert (await mirror.get(f"/v2/library/app/manifests/{image.digest}", **BY_PEER)).body == image.body
    assert (await mirror.get(of(image.layers[0]), **BY_PEER)).body == layers[0]
    assert (place.asked, upstream.count("GET", "/blobs/")) == ([], 1)
    assert (await mirror.get(of(image.layers[1]))).body == layers[1]
    await mirror.until_cached(image.layers[2])
    assert [upstream.count("GET", str(layer)) for layer in image.layers] == [1, 0, 0]


async def test_a_mirror_below_is_a_client(start: StartMirror, place: Scripted, upstream: Scripted) -> None:
    """What it asks for is asked of the fleet: it does not know the homes here."""
    mirror, own = await with_place(start, place)
    blob = place.add_blob(data := homed(place.url, own))
    assert (await mirror.get(of(blob), **BY_CHILD)).body == data
    assert (place.count("GET", str(blob)), upstream.asked) == (1, [])


async def test_a_request_that_has_been_here_is_refused(start: StartMirror, place: Scripted, upstream: Scripted) -> None:
    """Nobody is asked for it, so that it ends."""
    mirror, own = await with_place(start, place)
    for role in ("peer", "child"):
        passed = f"a.lan; mirror=child, {own.removeprefix('http://')}; mirror={role}, cdn.example"
        assert (await mirror.get("/v2/library/app/manifests/1", CDN_Loop=passed)).status == 508
    assert (place.asked, upstream.asked) == ([], [])


async def test_mirrors_that_are_each_others_parents_serve_all_the_same(
    start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """A mistake in the settings costs a request, not a pull."""
    mirrors = await start_mutual_parents(start, tmp_path)
    image = upstream.add_image("library/app", "1")
    for mirror in mirrors:
        assert (await mirror.get("/v2/library/app/manifests/1")).body == image.body
        assert (await mirror.get(of(image.layers[0]))).digest() == image.layers[0]
    assert upstream.count("GET", str(image.layers[0])) == 1


@dataclass
class Ring:
    """Three mirrors each of which takes the next one for the home of some content."""

    mirrors: list[Mirror]
    pairs: list[tuple[str, str]]

    def has(self, key: str) -> bool:
        return all(ranked(pair, key)[0] == pair[1] for pair in self.pairs)

    def blob(self, size: int) -> bytes:
        while not self.has(str(Digest.of(data := os.urandom(size)))):
            pass
        return data


@pytest.fixture
async def ring(start: StartMirror, tmp_path: Path) -> Ring:
    ports = [free_port() for _ in range(3)]
    pairs = [(f"http://127.0.0.1:{port}", f"http://localhost:{ports[(number + 1) % 3]}") for number, port in enumerate(ports)]
    return Ring([await start(tmp_path / str(number), settings=fleet_of(*pair)) for number, pair in enumerate(pairs)], pairs)


async def test_lists_that_disagree_in_a_ring_cannot_deadlock(ring: Ring, upstream: Scripted) -> None:
    """Each of three mirrors has clients that wait: all get what they asked for, and upstream is asked by each mirror at most."""
    blob = upstream.add_blob(data := ring.blob(MIB))
    hold = Hold(1000)
    upstream.fail(str(blob), hold)
    blobs = [asyncio.create_task(mirror.get(of(blob))) for mirror in ring.mirrors for _ in range(3)]
    await hold.reached.wait()
    hold.release.set()
    assert [got.body for got in await asyncio.wait_for(asyncio.gather(*blobs), PATIENCE)] == [data] * 9
    assert upstream.count("GET", str(blob)) <= 3


async def test_nor_is_anything_small_waited_for_in_a_ring(ring: Ring, upstream: Scripted) -> None:
    """Manifests, and the sizes of blobs: no mirror waits until another one gives up."""
    tag = next(str(number) for number in range(1000) if ring.has(f"docker.io/library/app:{number}"))
    image = upstream.add_image("library/app", tag)
    blob = upstream.add_blob(data := ring.blob(1000))
    before = await ring.mirrors[0].metric("mirror_peer_errors_total")
    path = f"/v2/library/app/manifests/{tag}"
    clients = ring.mirrors * 3
    manifests = await asyncio.wait_for(asyncio.gather(*(mirror.get(path) for mirror in clients)), PATIENCE)
    assert [got.body for got in manifests] == [image.body] * 9
    sizes = await asyncio.wait_for(asyncio.gather(*(mirror.head(of(blob)) for mirror in clients)), PATIENCE)
    assert [got.headers["Content-Length"] for got in sizes] == [str(len(data))] * 9
    assert await ring.mirrors[0].metric("mirror_peer_errors_total") == before
    assert (upstream.count("GET", path) <= 3, upstream.count("HEAD", str(blob)) <= 3) == (True, True)


async def test_a_peer_does_not_wait_for_what_is_asked_of_another_peer(
    start: StartMirror, place: Scripted, upstream: Scripted
) -> None:
    """Not beyond the time that shows whether that one lives: it is told to go on to the registry. In another process on the same cache too."""
    mirror, own = await with_place(start, place)
    second = await start(mirror.directory, settings=fleet_of(f"http://127.0.0.1:{free_port()}"))
    blob = place.add_blob(data := homed(place.url, own, MIB))
    upstream.add_blob(data)
    hold = Hold(1000)
    place.fail(str(blob), hold)
    client = asyncio.create_task(mirror.get(of(blob)))
    await hold.reached.wait()
    refused = await asyncio.gather(mirror.get(of(blob), **BY_PEER), second.get(of(blob), **BY_PEER))
    assert [(got.status, got.headers["Cache-Status"]) for got in refused] == [(503, "mirror; fwd=miss; detail=UNAVAILABLE")] * 2
    waits = asyncio.create_task(mirror.get(of(blob), **BY_PEER))
    hold.release.set()
    assert (await client).body == data
    assert (await waits).body == data
    assert upstream.count("GET", str(blob)) == 0


# ------------------------------------------------------------------ tags


def tag_homed(home: str, other: str) -> str:
    """A tag whose home is one mirror rather than the other."""
    return next(str(number) for number in range(1000) if ranked((home, other), f"docker.io/library/app:{number}")[0] == home)


@pytest.mark.parametrize("age", [0, 150])
async def test_times_for_which_tags_are_kept_do_not_add_up(
    start: StartMirror, place: Scripted, upstream: Scripted, age: int
) -> None:
    """A tag that another mirror has asked for some time ago is as old here, and a mirror that asks is told so, each time; a client is not."""
    mirror, own = await with_place(start, place, tag_ttl="300s")
    tag = tag_homed(place.url, own)
    image = place.add_image("library/app", tag)
    place.extra_headers["Age"] = str(age)
    path = f"/v2/library/app/manifests/{tag}"
    got = await mirror.get(path)
    assert (got.body, got.headers.get("Age")) == (image.body, None)
    for _ in range(2):
        said = int((await mirror.get(path, **BY_PEER)).headers["Age"])
        assert age <= said < age + PATIENCE
    assert (await mirror.get(path)).cache == "mirror; hit"
    assert (len(place.asked), upstream.asked) == (1, [])


async def test_what_another_mirror_serves_stale_is_stale_here(start: StartMirror, place: Scripted, upstream: Scripted) -> None:
    """It is asked for again by the next client, but not by each one."""
    mirror, own = await with_place(start, place, tag_ttl="300s")
    tag = tag_homed(place.url, own)
    place.add_image("library/app", tag)
    place.extra_headers["Age"] = "400"
    path = f"/v2/library/app/manifests/{tag}"
    found = [(await mirror.get(path)).cache for _ in range(4)]
    stale = "mirror; fwd=stale; detail=upstream-unavailable"
    assert found == ["mirror; fwd=miss; stored", "mirror; fwd=stale; detail=validated", stale, stale]
    assert (place.count("GET"), place.count("HEAD"), upstream.asked) == (1, 1, [])


@pytest.mark.parametrize("registry_answers", [True, False])
async def test_another_mirror_does_not_turn_a_tag_back(
    start: StartMirror, place: Scripted, upstream: Scripted, registry_answers: bool
) -> None:
    """What it heard of the registry before this one asked there itself counts no longer: the registry is asked. Where that does not answer, what is known here is served."""
    mirror, own = await with_place(start, place, tag_ttl="0s")
    tag = tag_homed(place.url, own)
    path = f"/v2/library/app/manifests/{tag}"
    old = upstream.add_image("library/app", tag)
    assert (await mirror.get(f"/v2/library/app/manifests/{old.digest}")).body == old.body
    place.manifests.update({key: found for key, found in upstream.manifests.items() if key[0] == "library/app"})
    new = upstream.add_image("library/app", tag)
    place.fail(path, Status(500))
    assert (await mirror.get(path)).body == new.body
    place.extra_headers["Age"] = "400"
    if not registry_answers:
        upstream.fail("/v2/", Status(500), times=1000, method="*")
    for _ in range(2):
        assert (await mirror.get(path)).body == new.body
    assert place.count("HEAD", path) >= 1


# ------------------------------------------------------------------ figures


async def test_requests_of_mirrors_count_apart(start: StartMirror, place: Scripted, upstream: Scripted) -> None:
    """They are no clients': hit ratios and traffic of the fleet would count them twice. Each one counts, also of a kind that is answered often."""
    mirror, own = await with_place(start, place)
    image = upstream.add_image("library/app", "1", layers=[homed(own, place.url)])
    names = (
        "registry_proxy_requests_total",
        "registry_proxy_pushed_bytes_total",
        "mirror_peer_requests_total",
        "mirror_peer_sent_bytes_total",
    )
    before = [await mirror.metric(name) for name in names]
    size = 0
    for path in (f"/v2/library/app/manifests/{image.digest}", of(image.layers[0])):
        for _ in range(3):
            size += len((await mirror.get(path, **BY_PEER)).body)
    after = [await mirror.metric(name) for name in names]
    assert [late - early for early, late in zip(before, after, strict=True)] == [0, 0, 6, size]


# ------------------------------------------------------------------ access


async def test_each_mirror_checks_its_own_clients(members: StartMembers, upstream: Scripted, tmp_path: Path) -> None:
    """With the fleet's token a mirror may pull what it asks for; without it, it is a client as others. What the home has cached of a repository that is not for all gets nobody by the name of one that is."""
    token = tmp_path / "token"
    token.write_text("the-token-of-the-fleet\n")
    access = [{"who": ["anyone"], "repositories": ["library/app"]}]
    fleet = await members(2, settings={"fleet": {"token_file": str(token)}, "access": access})
    first, second = fleet.mirrors.values()
    upstream.keeps_apart = True
    while True:
        public = upstream.add_image("library/app", "1")
        private = upstream.add_image("library/secret", "1")
        if all(fleet.in_order(digest)[0] is first for digest in (public.layers[0], private.layers[0])):
            break
    trusted = {**BY_PEER, "Authorization": "Bearer the-token-of-the-fleet"}
    secret = f"/v2/library/secret/blobs/{private.layers[0]}"
    assert (await first.get(secret)).status == 404
    assert (await first.get(secret, **BY_PEER)).status == 404
    assert (await first.get(secret, **{**trusted, "Authorization": "Bearer the-token-of-another-fleet"})).status == 403
    assert (await first.get(secret, **{**trusted, **BY_CHILD})).status == 403, "who is below is a client, whatever it shows"
    assert (await first.get(secret, **trusted)).digest() == private.layers[0]
    # Known by the manifest that names it.
    assert (await second.get("/v2/library/app/manifests/1")).body == public.body
    assert (await second.get(of(public.layers[0]))).digest() == public.layers[0]
    assert upstream.count("GET", str(public.layers[0])) == 1
    await first.until_cached(public.layers[0])
    for path in (secret, of(private.layers[0]), f"/v2/library/app/manifests/{private.digest}"):
        assert (await second.get(path)).status == 404


# ------------------------------------------------------------------ settings and headers


@pytest.mark.parametrize(
    ("field", "ids", "by_peer"),
    [
        ("a.lan:5000; mirror=peer", ("a.lan:5000",), True),
        ("A.lan:5000;mirror=child", ("a.lan:5000",), False),
        ('a.lan; mirror="peer", [::1]:5000 ; v=1; mirror=child', ("a.lan", "[::1]:5000"), False),
        ("cdn.example, a.lan; mirror=peer, other-cdn; x=y", ("a.lan",), True),
        ("cdn.example; mirror=queen", (), False),
        (", ;;, ;mirror=peer, a b; mirror=peer", (), False),
        ("\x00\xff" * 500, (), False),
        (f"{'x' * 5000}; mirror=peer", (), False),
    ],
)
def test_what_a_request_has_passed(field: str, ids: tuple[str, ...], by_peer: bool) -> None:
    """Entries of CDNs are kept for those who come after, and count for nothing here."""
    found = parse(field)
    assert found == Passed(field, ids, by_peer)
    assert parse(found.extended("me:5000", PEER)) == Passed(found.extended("me:5000", PEER), (*ids, "me:5000"), True)
    assert parse(Passed().extended("me:5000", CHILD)).ids == ("me:5000",)


@pytest.mark.parametrize(
    ("fleet", "fault"),
    [
        ({"mirrors": ["http://a.lan:5000"]}, "own: which of fleet.mirrors is this one?"),
        ({"mirrors": ["http://a.lan:5000"], "own": "http://b.lan:5000"}, "own: one of fleet.mirrors is expected"),
        ({"mirrors": ["http://a.lan:5000", "http://A.lan:5000/"], "own": "http://a.lan:5000"}, "is listed again"),
        ({"mirrors": ["http://a.lan:5000/x"], "own": "http://a.lan:5000"}, "without a path"),
        ({"mirrors": ["a.lan:5000"], "own": "http://a.lan:5000"}, "a URL such as"),
        ({"mirrors": ["http://a.lan"], "own": "http://a.lan:80", "parents": ["http://a.lan"]}, "is in fleet.mirrors too"),
        ({"parents": ["http://user:secret@a.lan"]}, "without user and password"),
        ({"parents": [{"url": "http://user:secret@a.lan"}]}, "without user and password"),
        ({"parents": ["http://a.lan", {"url": "http://A.lan:80"}]}, "is listed again"),
        ({"parents": [{"token_file": "/secret"}]}, "a URL or a table is expected"),
    ],
)
def test_settings_that_cannot_be_meant(fleet: dict[str, Any], fault: str) -> None:
    """Each is told with what to do, and without a secret."""
    with pytest.raises(ConfigError) as error:
        load(None, {}, {"fleet": fleet})
    assert fault in str(error.value)
    assert "secret" not in str(error.value)


def test_a_fleet_with_access_tables_needs_a_token(tmp_path: Path) -> None:
    """Its mirrors could pull nothing from each other; a short token is none."""
    mirrors = {"mirrors": ["http://a.lan:5000"], "own": "http://a.lan:5000"}
    access = [{"who": ["anyone"]}]
    with pytest.raises(ConfigError, match="token_file: set it"):
        load(None, {}, {"fleet": mirrors, "access": access})
    token = tmp_path / "token"
    token.write_text("short")
    with pytest.raises(ConfigError, match="16 characters or more"):
        load(None, {}, {"fleet": {**mirrors, "token_file": str(token)}, "access": access})
    token.write_text("x" * 16 + "\n")
    assert load(None, {}, {"fleet": {**mirrors, "token_file": str(token)}, "access": access}).fleet.token() == "x" * 16


def test_a_mirror_that_is_added_or_lost_moves_its_own_part_only() -> None:
    """And each has about the same."""
    urls = tuple(f"http://mirror-{number}.lan:5000" for number in range(5))
    keys = [str(number) for number in range(2000)]
    homes = {key: ranked(urls, key)[0] for key in keys}
    fewer = {key: ranked(urls[:4], key)[0] for key in keys}
    assert all(fewer[key] == homes[key] for key in keys if homes[key] != urls[4])
    counts = [list(homes.values()).count(url) for url in urls]
    assert min(counts) > 300
