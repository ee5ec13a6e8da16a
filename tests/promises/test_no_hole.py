"""Every rule by every way to content (docs/guards.md), of a whole mirror in front of a scripted registry."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.cache.pull import Pull
from mirror.config import load
from mirror.errors import MirrorError
from mirror.guards import children
from mirror.manifests import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest, Repository, Tag
from mirror.storage.scans import ScanResult, keep_scan_result
from mirror.wiring import store, wired
from tests.promises.test_signed import make_key, sign_with_payload
from tests.promises.test_workers import held_by
from tests.support.commands import Commands
from tests.support.mirrors import Mirror, MirrorProcess, StartMirror
from tests.support.patience import patiently
from tests.support.pushes import HOSTED
from tests.support.scripted import Hold, Image, Scripted

APP = Repository("docker.io", "library/app")
TAG = [
    "/v2/app/manifests/latest",
    "/v2/app/manifests/latest?ns=docker.io",
    "/v2/docker.io/library/app/manifests/latest",
    "/docker.io/v2/library/app/manifests/latest",
]
PEM, SIGN = make_key("ecdsa")
DAY = 86400.0


def days_ago(days: float) -> str:
    return datetime.fromtimestamp(time.time() - days * DAY, UTC).isoformat()


@dataclass(frozen=True)
class Content:
    """An index with one image."""

    index: Digest
    body: bytes
    image: Image

    @property
    def digests(self) -> dict[str, Digest]:
        return {"index": self.index, "image": self.image.digest, "config": self.image.config, "layer": self.image.layers[0]}

    def path(self, part: str) -> str:
        return f"/v2/app/{'manifests' if part in ('index', 'image') else 'blobs'}/{self.digests[part]}"


@dataclass(frozen=True)
class Case:
    """A rule against the second of two images. `refused` are the parts of it that are refused by their digests."""

    tables: list[dict[str, Any]]
    refused: str = ""
    new: bool = True
    """Whether a tag that was never seen before is refused."""
    pulled: bool = True
    """Whether it is refused too where clients had it before there was the rule."""
    is_wait: bool = False
    """True if its content is refused only as long as a tag waits."""
    second: dict[str, Any] = field(default_factory=dict)
    """Of the configuration of the second image."""
    platform: str = "linux"
    media_type: str = OCI_INDEX
    listed: str = ""
    """The part that is on a block list."""
    severity: str = ""
    """What a scanner has found in the second image."""
    signs: bool = False
    """Whether the first image is signed."""

    @property
    def is_named(self) -> bool:
        """True if the rule refuses the first image too: it names the repository."""
        return self.refused == WHOLE and not self.is_wait


WHOLE = "index image config layer"
BAD = {"config": {"Labels": {"status": "bad"}}}


def rule(**table: Any) -> list[dict[str, Any]]:
    return [{"name": "rule", **table}]


CASES = {
    "cooldown": Case(rule(cooldown="3d"), new=False, pulled=False),
    "strict": Case(rule(cooldown="3d", strict=True), WHOLE, new=False, pulled=False, is_wait=True),
    "strict for a tag": Case(rule(cooldown="3d", strict=True, images=["app:lat*"]), WHOLE, new=False, pulled=False, is_wait=True),
    "new tags": Case(rule(cooldown="3d", new_tags="hold"), pulled=False),
    "new tags, strict": Case(rule(cooldown="3d", new_tags="hold", strict=True), WHOLE, pulled=False, is_wait=True),
    "immutable": Case(rule(immutable=True), new=False),
    "refuse_older": Case(rule(refuse_older=True), new=False, pulled=False, second={"created": days_ago(9)}),
    "signed": Case(rule(signed={"keys": ["key.pub"]}), signs=True),
    "max_severity": Case(rule(max_severity="medium"), "index image", severity="high"),
    "deny by name": Case(rule(images=["app"], deny=True), WHOLE),
    "deny by label": Case(rule(deny={"labels": {"status": "b*"}}), "index image", second=BAD),
    "allow by label": Case([{"name": "ok", "allow": {"labels": {"status": "ok"}}}, *rule(deny=True)], "index image", second=BAD),
    "deny by size": Case(rule(deny={"larger_than": "8KB"}), "index image"),
    "deny what is old": Case(rule(deny={"older_than": "99d"}), "index image", second={"created": days_ago(999)}),
    "deny what is young": Case(rule(deny={"younger_than": "2d"}), "index image", second={"created": days_ago(1)}),
    "deny by platform": Case(
        rule(deny={"platforms": ["windows/*"]}), "index image", second={"os": "windows"}, platform="windows"
    ),
    "deny by media type": Case(rule(deny={"media_types": ["*.list.v2*"]}), "index", media_type=DOCKER_LIST),
    "blocked index": Case(rule(), "index", listed="index"),
    "blocked manifest": Case(rule(), "index image", listed="image"),
    "blocked configuration": Case(rule(), "index image config", listed="config"),
    "blocked layer": Case(rule(), "index image layer", listed="layer"),
}


class World:
    """A registry whose tag means a first image and moves to a second one, and mirrors in front of it."""

    def __init__(self, case: Case, start: StartMirror, upstream: Scripted, folder: Path) -> None:
        self.case = case
        self._start = start
        self.upstream = upstream
        self._folder = folder
        self.first = self._add({"created": days_ago(5), "config": {"Labels": {"status": "ok"}}}, 1000, "linux", OCI_INDEX)
        more = {"subject": {"mediaType": OCI_INDEX, "digest": str(self.first.index), "size": len(self.first.body)}}
        configuration = {"created": days_ago(5), "config": {"Labels": {"status": "ok"}}, **case.second}
        self.second = self._add(configuration, 10_000, case.platform, case.media_type, **more)
        (folder / "key.pub").write_bytes(PEM)
        self.rules = [dict(table) for table in case.tables]
        if case.listed:
            (folder / "list.txt").write_text(f"{self.second.digests[case.listed]} poisoned\n")
            self.rules[0]["blocklist"] = [str(folder / "list.txt")]
        if "signed" in self.rules[0]:
            self.rules[0]["signed"] = {"keys": [str(folder / "key.pub")]}
        if case.signs:
            sign_with_payload(upstream, self.first.index, SIGN)

    def _add(self, configuration: dict[str, Any], size: int, system: str, media_type: str, **more: Any) -> Content:
        image = self.upstream.add_image("library/app", None, [os.urandom(size)], configuration, **more)
        entry = {"mediaType": OCI_MANIFEST, "digest": str(image.digest), "size": len(image.body)}
        entries = [entry | {"platform": {"os": system, "architecture": "amd64"}}]
        body = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
        return Content(self.upstream.add_manifest("library/app", None, body, media_type), body, image)

    def means(self, content: Content) -> None:
        """Moves the tag."""
        self.upstream.manifests["library/app", "latest"] = self.upstream.manifests["library/app", str(content.index)]

    def settings(self, ruled: bool) -> dict[str, Any]:
        return {"hosted": HOSTED, "guard": self.rules if ruled else []}

    async def start(self, ruled: bool = True, **cache: Any) -> Mirror:
        cache = {"tag_ttl": 0, "prefetch": True, **cache}
        mirror: Mirror = await self._start(self._folder / "cache", settings=self.settings(ruled), **cache)
        return mirror

    async def pull(self, mirror: Mirror, content: Content) -> None:
        """Has a client pull the tag, which means this."""
        assert (await mirror.get(TAG[0])).body == content.body
        for part in ("index", "image", "config", "layer"):
            assert (await mirror.get(content.path(part))).status == 200
        for part in ("config", "layer"):
            await mirror.until_cached(content.digests[part])

    async def scan(self) -> None:
        """Has a scanner find something in the second image."""
        if self.case.severity:
            async with store(load(None, {}, self._tree(False))) as opened:
                await keep_scan_result(opened, self.second.image.digest, ScanResult("x", self.case.severity, scanned=1.0))

    def _tree(self, ruled: bool) -> dict[str, Any]:
        registries = {"docker.io": {"endpoints": [self.upstream.url]}}
        return {"cache": {"dir": str(self._folder / "cache")}, "registries": registries, **self.settings(ruled)}

    async def pull_ahead(self, reference: Tag | Digest) -> Digest | None:
        """Has ``mirror pull`` pull, beside the mirror; None if that fails."""
        async with wired(load(None, {}, self._tree(True))) as (cache, _, _):
            this = Pull(APP, reference)
            try:
                await cache.pulls.pull(this)
            except MirrorError:
                return None
            return this.digest

    async def exported(self, mirror: Mirror, reference: str) -> bool | None:
        """Whether an exported bundle has the second image; None if there is no bundle."""
        got = await mirror.get(f"/export/app{reference}.tar")
        if got.status != 200:
            return None
        with tarfile.open(fileobj=BytesIO(got.body)) as tar:
            return self.second.index.hex in {name.rpartition("/")[2] for name in tar.getnames()}


@pytest.fixture(params=CASES)
def world(
    request: pytest.FixtureRequest, start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.setattr(children, "this_platform", lambda: "linux/amd64")
    return World(CASES[request.param], start, upstream, tmp_path)


async def by_every_tag(mirror: Mirror, paths: Sequence[str] = TAG) -> set[tuple[int, str | None]]:
    """Status and digest of every way to ask for the tag."""
    found = set()
    for path in paths:
        for method, headers in (("HEAD", {}), ("GET", {}), ("GET", {"Range": "bytes=0-9"})):
            got = await mirror.get(path, method, **headers)
            assert got.status == 200 or method == "HEAD" or json.loads(got.body)["errors"][0]["code"] == "DENIED"
            found.add((got.status, got.headers.get("Docker-Content-Digest") if got.status == 200 else None))
    return found


async def check_digests(mirror: Mirror, content: Content, refused: str) -> None:
    """Asks for what nothing names yet first, and by HEAD before GET."""
    for part in ("layer", "config", "image", "index"):
        for method, headers in (("HEAD", {}), ("GET", {}), ("GET", {"Range": "bytes=0-9"})):
            got = await mirror.get(content.path(part), method, **headers)
            allowed = (206,) if headers and part in ("layer", "config") else (200,)
            assert got.status in ((403,) if part in refused.split() else allowed), (part, method, headers)


async def test_a_tag_that_was_never_seen(world: World) -> None:
    """By HEAD and GET with every alias; then its parts by digest."""
    case, first, second = world.case, world.first, world.second
    await world.scan()
    world.means(second)
    mirror = await world.start()
    assert await by_every_tag(mirror) == {(403, None) if case.new else (200, str(second.index))}
    await check_digests(mirror, second, case.refused if case.new else "")
    await check_digests(mirror, first, WHOLE if case.is_named else "")


async def test_a_tag_that_moved(world: World) -> None:
    """It means its first image by every way: HEAD, GET, ``mirror pull`` and export. The second one's parts are refused by digest, by mount, among referrers and
    by export, and what is refused is never fetched."""
    case, first, second = world.case, world.first, world.second
    await world.scan()
    world.means(first)
    # A rule that lets nobody have the first image comes later.
    refuses_first = case.is_named or "new_tags" in case.tables[0]
    mirror = await world.start(ruled=not refuses_first)
    await world.pull(mirror, first)
    if refuses_first:
        await mirror.stop()
        mirror = await world.start()
    world.means(second)
    denied = case.is_named
    assert await by_every_tag(mirror) == {(403, None) if denied else (200, str(first.index))}
    assert await world.pull_ahead(Tag("latest")) == (None if denied else first.index)
    assert await world.exported(mirror, ":latest") is (None if denied else False)
    await check_digests(mirror, second, case.refused)
    listed = (await mirror.get(f"/v2/app/referrers/{first.index}")).body
    is_blocked = denied or case.listed == "image"
    assert (str(second.image.digest).encode() in listed) != is_blocked
    for part in ("layer", "config"):
        digest, is_refused = second.digests[part], part in case.refused.split()
        for _ in patiently():
            # A download may have been sent before it is kept.
            mounted = await mirror.get(f"/v2/class/app/blobs/uploads/?mount={digest}&from=library/app", "POST")
            if is_refused or mounted.status == 201:
                break
        assert (mounted.status == 201) != is_refused
        assert mirror.cached(digest) != is_refused
    is_refused = bool(case.refused)
    assert await world.exported(mirror, f"@{second.index}") is (None if is_refused else True)
    assert await world.pull_ahead(second.index) == (None if is_refused else second.index)


async def test_a_tag_that_clients_had_before_there_was_the_rule(world: World) -> None:
    """A fresh tag is decided on without asking the registry but for signatures, and a stale one while the registry does not answer."""
    case, first, second = world.case, world.first, world.second
    mirror = await world.start(ruled=False)
    for content in (first, second):
        world.means(content)
        await world.pull(mirror, content)
    await mirror.stop()
    await world.scan()
    served = {(403, None) if case.is_named else (200, str(first.index if case.pulled else second.index))}
    refused = "" if case.is_wait else case.refused
    asked = len(world.upstream.asked)
    mirror = await world.start(tag_ttl="1h")
    assert await by_every_tag(mirror) == served
    await check_digests(mirror, second, refused)
    assert case.signs or len(world.upstream.asked) == asked
    await mirror.stop()
    await world.upstream.stop()
    mirror = await world.start()
    assert await by_every_tag(mirror, TAG[:1]) == served
    await check_digests(mirror, second, refused)


# ---------------------------------------------------------------------- what is fetched for it


async def test_strict_fetches_what_is_held_only_for_who_goes_around(
    start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """Not for whoever pulls by the tag, nor for what a cached manifest names; and once, whatever is asked for then, also what nobody has."""
    world = World(CASES["strict"], start, upstream, tmp_path)
    world.means(world.first)
    mirror = await world.start(prefetch=False)
    await world.pull(mirror, world.first)
    world.means(world.second)
    for path in (TAG[0], world.first.path("layer"), world.first.path("image"), TAG[0]):
        assert (await mirror.get(path)).status == 200
    held = [str(world.second.digests[part]) for part in ("index", "image")]
    assert [upstream.count("GET", digest) for digest in held] == [0, 0]
    for part in ("layer", "config", "image", "index", "layer"):
        assert (await mirror.get(world.second.path(part))).status == 403
    for _ in range(2):
        assert (await mirror.get(f"/v2/app/blobs/{Digest.of(b'nothing')}")).status == 404
    assert [upstream.count("GET", digest) for digest in held] == [1, 1]


@pytest.mark.parametrize("where", ["here", "at the registry", "nowhere"])
async def test_a_tag_goes_back_as_far_as_it_must(start: StartMirror, upstream: Scripted, tmp_path: Path, where: str) -> None:
    """To the last good image that is here, or that the registry has: of four that clients had, the last is blocked, and the third is nowhere any more. By HEAD as by
    GET, and in a bundle; what it has to be asked for is asked once."""
    images = []
    mirror: Mirror = await start(tag_ttl=0)
    for _ in range(4):
        images.append(upstream.add_image("library/app", "latest"))
        assert (await mirror.get(TAG[0])).status == 200
        for blob in (images[-1].config, *images[-1].layers):
            assert (await mirror.get(f"/v2/app/blobs/{blob}")).status == 200
            await mirror.until_cached(blob)
    await Commands(mirror.directory)("block", str(images[3].layers[0]))
    await mirror.stop()
    lost = images[1:3] if where == "here" else images[:3]
    async with store(load(None, {}, {"cache": {"dir": str(mirror.directory)}})) as opened:
        for image in lost:
            await opened.delete(APP, image.digest)
    for image in images[where == "at the registry" : 3]:
        del upstream.manifests["library/app", str(image.digest)]
    mirror = await start(tag_ttl=0)
    asked = upstream.count("GET", str(images[0].digest))
    for method in ("HEAD", "GET", "HEAD", "GET"):
        got = await mirror.get(TAG[0], method)
        if where == "nowhere":
            assert got.status == 403
            assert method == "HEAD" or "neither here nor at the registry" in json.loads(got.body)["errors"][0]["message"]
        else:
            assert (got.status, got.headers["Docker-Content-Digest"]) == (200, str(images[0].digest))
            assert got.headers["Mirror-Tag"] == f"held; new={images[3].digest}"
    assert upstream.count("GET", str(images[0].digest)) - asked == (
        1 if where == "at the registry" else 0 if where == "here" else 4
    )
    if where == "here":
        bundle = await mirror.get("/export/app:latest.tar")
        with tarfile.open(fileobj=BytesIO(bundle.body)) as tar:
            assert images[0].digest.hex in {name.rpartition("/")[2] for name in tar.getnames()}


async def test_a_download_that_is_blocked_half_way_is_cut_in_all_workers(upstream: Scripted, tmp_path: Path) -> None:
    """Whichever worker downloads it, and whichever reads it along: none of their clients gets it whole, and then all are refused."""
    data = os.urandom(8_000_000)
    blob = upstream.add_blob(data)
    hold = Hold(after=1_000_000)
    upstream.fail(str(blob), hold, times=10)
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, SERVER__WORKERS="2") as mirror:
        _, clients = await held_by(mirror, str(blob), hold)
        await Commands(tmp_path / "cache")("block", str(blob))

        async def statuses() -> set[int]:
            found = set()
            for _ in range(12):
                async with aiohttp.ClientSession() as session, session.head(f"{mirror.url}/v2/app/blobs/{blob}") as got:
                    found.add(got.status)
            return found

        for _ in patiently():
            if await statuses() == {403}:
                break
        assert not any(client.done() for client in clients)
        hold.release.set()
        ended = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientPayloadError) for end in ended), ended
        assert len(mirror.workers) == 2
