"""Commands and the dashboard know hosted images."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mirror.cache import own
from mirror.config import ConfigError, load
from mirror.config.hosted import shadows
from mirror.names import Digest, Repository
from mirror.patterns import Pattern
from mirror.storage.disk.maintenance.hosted_collection import tags_beyond
from mirror.storage.settings import HostedRules, Keep
from tests.hosted.test_crashes import Pusher, hosting
from tests.support.commands import Commands
from tests.support.commands import mirror as command
from tests.support.mirrors import Mirror, StartMirror
from tests.support.pushes import HOSTED, manifest_of, push_blob, push_image, put_manifest
from tests.support.scripted import Scripted

NAME = "docker.io/team/app:1"


def test_commands_know_hosted_images(tmp_path: Path) -> None:
    """They are listed, shown with who pushed them and when, pinned, exported, deleted, and imported into another mirror, where they live too."""
    config = tmp_path / "mirror.toml"
    config.write_text('[hosted]\nrepositories = ["team/**"]\ngrace = "1ms"\nuntagged = "1ms"\n')
    cache, other, tar = tmp_path / "cache", tmp_path / "other", tmp_path / "app.tar"

    def run(*arguments: str, folder: Path = cache) -> str:
        done = command(*arguments, "--cache-dir", str(folder), "--config", str(config))
        assert done.returncode == 0, done.stderr
        return done.stdout

    with hosting(cache, config) as process:
        pusher = Pusher(process.url, 1)
        pusher.push("team/app", "1", os.urandom(100_000))
        [image] = json.loads(run("ls", "--json"))["images"]
        assert (image["image"], image["pushed_by"], image["fresh"]) == (NAME, "127.0.0.1", True)
        assert image["pushed"] is not None
        assert "hosted" in run("ls")
        assert "pushed" in run("show", NAME)
        assert "127.0.0.1" in run("show", NAME)
        assert json.loads(run("stats", "--json"))["hosted"] > 100_000
        assert json.loads(run("stats", "--json"))["size"] == 0
        run("export", NAME, "-o", str(tar), "--platform", "all")
        run("pin", NAME)
        assert pusher.ask("DELETE", "/v2/team/app/manifests/1")[0] == 409
        assert json.loads(run("gc", "--json"))["hosted"]["blobs"] == 0
        run("unpin", NAME)
        run("rm", NAME)
        assert json.loads(run("ls", "--json"))["images"] == []
        assert json.loads(run("gc", "--json", "--dry-run"))["hosted"]["blobs"] == 2
        assert "named by nothing" in run("gc")
        assert sorted((cache / "blobs" / "sha256").iterdir()) == []
    run("import", str(tar), folder=other)
    with hosting(other, config) as process:
        reader = Pusher(process.url, 2)
        status, body, _ = reader.ask("GET", "/v2/team/app/manifests/1")
        assert status == 200
        for layer in json.loads(body)["layers"]:
            assert reader.ask("HEAD", f"/v2/team/app/blobs/{layer['digest']}")[0] == 200
        assert json.loads(run("gc", "--json", folder=other))["hosted"]["size"] == 0
        [image] = json.loads(run("ls", "--json", folder=other))["images"]
        assert image["pushed_by"] == "mirror import"


async def test_a_dry_run_names_the_tags_that_go(start: StartMirror, tmp_path: Path) -> None:
    """And deletes none; without it they are gone, but for those that are kept or pinned."""
    config = tmp_path / "mirror.toml"
    config.write_text('[hosted]\nrepositories = ["team/**"]\n[[hosted.keep]]\nrepositories = "team/*"\ntags = "pr-*"\nlast = 2\n')
    mirror = await start(settings={"hosted": HOSTED})
    for number in range(5):
        await push_image(mirror.session, "team/app", f"pr-{number}", b"%d" % number)
    await push_image(mirror.session, "team/app", "1", b"1")
    arguments = ("--cache-dir", str(mirror.directory), "--config", str(config))
    assert command("pin", "docker.io/team/app:pr-0", *arguments).returncode == 0
    dry = command("gc", "--dry-run", *arguments).stdout
    assert "team/app:pr-1: not kept" in dry
    assert "team/app:pr-2: not kept" in dry
    assert "pr-3" not in dry
    assert json.loads((await mirror.get("/v2/team/app/tags/list")).body)["tags"] == ["1", *(f"pr-{n}" for n in range(5))]
    assert command("gc", *arguments).returncode == 0
    assert json.loads((await mirror.get("/v2/team/app/tags/list")).body)["tags"] == ["1", "pr-0", "pr-3", "pr-4"]


@pytest.mark.parametrize(
    ("last", "age", "gone"),
    [(None, 250.0, ["c", "d"]), (1, None, ["b", "c", "d"]), (3, 50.0, ["d"]), (0, 150.0, ["b", "c", "d"]), (9, None, [])],
)
def test_what_a_rule_keeps(last: int | None, age: float | None, gone: list[str]) -> None:
    """The last ones, those of some time, or both; what no rule covers stays."""
    rules = HostedRules("docker.io", keep=(Keep(Pattern("team/**"), Pattern("*"), last, age),))
    tags = [("a", 900.0), ("b", 800.0), ("c", 700.0), ("d", 600.0)]
    assert list(tags_beyond(rules, Repository("docker.io", "team/app"), tags, 1000.0)) == gone
    assert list(tags_beyond(rules, Repository("docker.io", "other/app"), tags, 1000.0)) == []


@pytest.mark.parametrize(
    ("pattern", "takes"),
    [
        ("team/**", False),
        ("team/app", False),
        ("alpine", True),
        ("**", True),
        ("*/app", True),
        ("library/**", True),
        ("te*/x", True),
    ],
)
def test_names_that_all_pull_are_not_taken_by_accident(pattern: str, takes: bool) -> None:
    """A pattern that covers them needs `shadow`, and the error says so."""
    assert shadows(pattern) is takes
    tree = {"hosted": {"repositories": [pattern]}}
    if takes:
        with pytest.raises(ConfigError, match="shadow = true"):
            load(None, {}, tree)
    assert load(None, {}, {"hosted": {**tree["hosted"], "shadow": True}}).hosted.shadowing == ((pattern,) if takes else ())


@pytest.mark.parametrize("pattern", ["Team/**", "ghcr.io/team/**", "team//app", "", "team/**/"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    """With what is expected."""
    with pytest.raises(ConfigError, match=r"hosted\.repositories"):
        load(None, {}, {"hosted": {"repositories": [pattern]}})


async def test_the_dashboard_and_show_tell_of_hosted_images(start: StartMirror) -> None:
    """As hosted, with who pushed them; and that names are shadowed."""
    mirror = await start(settings={"hosted": {"repositories": ["**"], "shadow": True}})
    await push_image(mirror.session, "team/app", "1", b"layer")
    await push_image(mirror.session, "alpine", "1", b"layer")
    assert (await mirror.get("/v2/library/alpine/manifests/1")).status == 200
    page = (await mirror.get("/image/docker.io/team/app:1")).body.decode()
    assert "hosted" in page
    assert "127.0.0.1" in page
    assert "replaces what everybody gets" in (await mirror.get("/")).body.decode()
    for name, told in (("alpine:1", True), ("team/app:1", False)):
        shown = await Commands(mirror.directory)("show", name)
        assert ("replaces what everybody gets who pulls alpine" in shown) is told


async def test_a_catalog_of_before_gets_the_new_tables(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """One without them is opened, keeps what it has, and takes pushes."""
    image = upstream.add_image("library/app", "1", layers=[b"layer"])
    mirror = await start()
    await mirror.get("/v2/library/app/manifests/1")
    await mirror.get(f"/v2/library/app/blobs/{image.layers[0]}")
    await mirror.until_cached(image.layers[0])
    await mirror.stop()
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db, db:
        db.execute("DROP TABLE hosted")
        db.execute("DROP TABLE referrer")
        db.execute("DELETE FROM total WHERE part = 6")
    again = await start(settings={"hosted": HOSTED})
    await push_image(again.session, "team/app", "1", b"layer")
    assert (await again.get("/v2/library/app/manifests/1")).body == image.body
    await pushed_counts(again)


async def pushed_counts(mirror: Mirror) -> None:
    assert await mirror.metric("mirror_hosted_pushes_total") > 0
    assert await mirror.metric("mirror_hosted_bytes") >= 0


async def test_what_is_collected_is_not_served_any_more(start: StartMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that collects, and by those beside it, whatever they had in memory."""
    collected = asyncio.Event()

    async def now(seconds: float) -> None:
        await (collected.wait() if seconds == own._INTERVAL else sleep(seconds))

    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", now)
    rules = {**HOSTED, "untagged": "1ms", "keep": [{"tags": "pr-*", "last": 0}]}
    mirror = await start(settings={"hosted": HOSTED})
    digest, _ = await push_image(mirror.session, "team/app", "pr-1", b"layer")
    collecting = await start(settings={"hosted": rules})
    paths = ("/v2/team/app/manifests/pr-1", f"/v2/team/app/manifests/{digest}")
    for one in (mirror, collecting):
        for path in paths:
            assert (await one.get(path)).status == 200
    collected.set()
    for one in (collecting, mirror):
        for path in paths:
            while (await one.get(path)).status != 404:
                await sleep(0.01)


async def test_a_manifest_is_refused_if_a_blob_was_lost(start: StartMirror) -> None:
    """As one that is damaged on the disk is: the client is told to send it again."""
    mirror = await start(settings={"hosted": HOSTED})
    layer = await push_blob(mirror.session, "team/app", b"layer")
    await push_blob(mirror.session, "team/app", b"{}")
    (mirror.directory / "blobs" / "sha256" / layer.hex).write_bytes(b"LAYER")
    assert command("verify", "--cache-dir", str(mirror.directory)).returncode == 1
    said = await put_manifest(mirror.session, "team/app", "1", manifest_of(b"{}", b"layer"))
    assert (said.status, said.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert (await mirror.head(f"/v2/team/app/blobs/{layer}")).status == 404
    await push_blob(mirror.session, "team/app", b"layer")
    assert (await put_manifest(mirror.session, "team/app", "1", manifest_of(b"{}", b"layer"))).status == 201


async def test_a_tag_that_moves_is_not_collected_at_once(start: StartMirror) -> None:
    """What it meant stays for `untagged` from then on, not from its push on: somebody may be pulling it by digest."""
    mirror = await start(settings={"hosted": {**HOSTED, "untagged": "1h"}})
    old, body = await push_image(mirror.session, "team/app", "1", b"old")
    with closing(sqlite3.connect(mirror.directory / "catalog" / "content.sqlite")) as db, db:
        db.execute("UPDATE hosted SET used = used - 7200")
    await push_image(mirror.session, "team/app", "1", b"new")
    config = mirror.directory.parent / "mirror.toml"
    config.write_text('[hosted]\nrepositories = ["team/**"]\nuntagged = "1h"\n')
    assert command("gc", "--cache-dir", str(mirror.directory), "--config", str(config)).returncode == 0
    assert (await mirror.get(f"/v2/team/app/manifests/{old}")).body == body
    assert (await mirror.get(f"/v2/team/app/blobs/{Digest.of(b'old')}")).body == b"old"
