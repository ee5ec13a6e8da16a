"""Guards in a fleet: each mirror decides for its own clients, by what the registry says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirror.names import Digest
from mirror.upstream.fleet import ranked
from tests.fleet.test_changes import TOKEN, Setting, pull_at
from tests.fleet.test_fleet import of
from tests.support.commands import Commands
from tests.support.members import StartMembers, directory
from tests.support.mirrors import Mirror, StartMirror
from tests.support.ports import free_port
from tests.support.scripted import Scripted

TAG = "/v2/library/app/manifests/1"
COOLDOWN = [{"name": "cooling", "images": ["docker.io/**"], "cooldown": "30d"}]


async def meant(mirror: Mirror) -> str:
    """What its clients get by the tag."""
    return str((await mirror.head(TAG)).headers["Docker-Content-Digest"])


async def test_what_one_releases_all_release(members: StartMembers, upstream: Scripted, tmp_path: Path) -> None:
    """A tag that moved is held back by all, also where only its home asks the registry: the others hear of the move, and so can release it, whichever is asked."""
    (tmp_path / "token").write_text(TOKEN)
    tables = {"fleet": {"token_file": str(tmp_path / "token")}, "guard": COOLDOWN}
    fleet = Setting(await members(settings=tables, tag_ttl="0s"), upstream, tmp_path / "token")
    old = upstream.add_image("library/app", "1")
    await pull_at(fleet.mirrors, old)
    home, asked, _ = fleet.fleet.in_order_of_tag("library/app", "1")
    for at in (asked, home):
        new = upstream.add_image("library/app", "1")
        assert {await meant(mirror) for mirror in fleet.mirrors} == {str(old.digest)}
        status, _, errors = await fleet.command("release", "app:1", "--why", "seen", at=at, MIRROR_GUARD=json.dumps(COOLDOWN))
        assert (status, errors) == (0, "")
        assert {await meant(mirror) for mirror in fleet.mirrors} == {str(new.digest)}
        old = new


async def two(
    start: StartMirror, tmp_path: Path, digest: Digest, home: dict[str, Any], other: dict[str, Any]
) -> tuple[Mirror, Mirror]:
    """The home of a digest and another mirror, each with tables of its own."""
    while True:
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        if ranked(tuple(urls), str(digest)) == urls:
            break
    found = []
    for url, tables in zip(urls, (home, other), strict=True):
        settings = {"server": {"listen": url.removeprefix("http://")}, "fleet": {"mirrors": urls, "own": url}, **tables}
        found.append(await start(directory(tmp_path, url), settings=settings))
    return found[0], found[1]


async def test_each_refuses_for_its_own_clients(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """What a mirror denies its clients do not get, though the home gives it; and what the home denies the clients of the other get, from the registry."""
    image = upstream.add_image("library/app", "1")
    deny = {"guard": [{"name": "none", "images": ["docker.io/library/app"], "deny": True}]}
    path = f"/v2/library/app/manifests/{image.digest}"
    home, other = await two(start, tmp_path, image.digest, {}, deny)
    assert ((await home.get(path)).status, (await other.get(path)).status, (await other.get(TAG)).status) == (200, 403, 403)
    assert (await other.get(of(image.layers[0]))).status == 403
    await home.stop()
    await other.stop()
    upstream.asked.clear()
    home, other = await two(start, tmp_path, image.digest, deny, {})
    assert ((await home.get(path)).status, (await other.get(path)).status) == (403, 200)
    assert upstream.count("GET", str(image.digest)) <= 2


async def test_what_is_blocked_at_one_only_is_that_ones(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """With --here: its clients do not get it, in a download neither, and those of the other do."""
    image = upstream.add_image("library/app", "1")
    layer = image.layers[0]
    home, other = await two(start, tmp_path, layer, {}, {})
    await Commands(home.directory, upstream)("block", str(layer), "--here")
    while (await home.get(of(layer))).status != 403:
        pass
    got = await other.get(of(layer))
    assert (got.status, got.digest()) == (200, layer)
    assert upstream.count("GET", str(layer)) <= 2


async def test_lists_are_asked_of_the_registry_by_each(members: StartMembers, upstream: Scripted) -> None:
    """Of tags and referrers: by one request of each mirror, which keeps the answer for itself."""
    fleet = await members(2, tag_ttl="1h")
    image = upstream.add_image("library/app", "1")
    for path in ("/v2/library/app/tags/list", f"/v2/library/app/referrers/{image.digest}"):
        upstream.asked.clear()
        for mirror in [*fleet.mirrors.values()] * 2:
            assert (await mirror.get(path)).status == 200
        assert upstream.count("GET", path) == 2, path
