"""What guards promise (docs/guards.md), of a whole mirror in front of a scripted registry."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mirror import wiring
from mirror.api import context
from mirror.config import load
from mirror.guards import in_force
from mirror.names import Digest
from mirror.storage.sightings import Block
from tests.support.commands import Commands
from tests.support.dashboard import token
from tests.support.mirrors import Got, Mirror, MirrorProcess, StartMirror
from tests.support.patience import patiently
from tests.support.ports import free_port
from tests.support.scripted import Hold, Scripted

LATEST = "/v2/app/manifests/latest"


def guard(**table: Any) -> dict[str, Any]:
    return {"guard": [table]}


def blocking(folder: Path, *digests: Digest) -> dict[str, Any]:
    """Settings with a block list in a file."""
    write_list(folder, *digests)
    return guard(name="list", blocklist=[str(folder / "blocked.txt")])


def write_list(folder: Path, *digests: Digest) -> None:
    new = folder / "blocked.new"
    new.write_text("# found on Monday\n" + "".join(f"{digest} poisoned\n" for digest in digests))
    new.replace(folder / "blocked.txt")


# ---------------------------------------------------------------------- cooldown


async def test_a_tag_that_moved_keeps_its_old_image_for_the_cooldown(start: StartMirror, upstream: Scripted) -> None:
    """The new one is fetched by nobody's pull, headers say what is held, and the registry is asked no more often than without."""
    old = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, settings=guard(name="cool", cooldown="3d"))
    assert (await mirror.get(LATEST)).body == old.body
    new = upstream.add_image("library/app", "latest")
    asked, counted, moved = (
        len(upstream.asked),
        await mirror.metric("mirror_guard_total"),
        await mirror.metric("mirror_tag_moves_total"),
    )
    for count, method in enumerate(("GET", "HEAD", "GET"), 1):
        got = await mirror.get(LATEST, method)
        assert (got.status, got.headers["Docker-Content-Digest"]) == (200, str(old.digest))
        assert got.headers["Mirror-Tag"].startswith(f"held; new={new.digest}; until=")
        assert got.headers["Mirror-Guard"].startswith('"cool"; held; reason="the tag moved to it on ')
        assert len(upstream.asked) - asked == count
    assert not mirror.cached(new.digest)
    assert upstream.count("GET", str(new.digest)) == 0
    assert await mirror.metric("mirror_guard_total") - counted == 3
    assert await mirror.metric("mirror_tag_moves_total") - moved == 1


async def test_a_tag_that_goes_back_in_time_has_reached_nobody(start: StartMirror, upstream: Scripted) -> None:
    """Without a header then: nothing is held."""
    old = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, settings=guard(cooldown="3d"))
    await mirror.get(LATEST)
    upstream.add_image("library/app", "latest")
    assert (await mirror.get(LATEST)).body == old.body
    upstream.add_manifest("library/app", "latest", old.body)
    got = await mirror.get(LATEST)
    assert (got.body, "Mirror-Tag" in got.headers) == (old.body, False)


async def test_what_is_held_can_be_had_by_its_digest_unless_strict(
    start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """With `strict`, neither its manifest nor what only it names; what other images have too is served."""
    shared = b"base" * 100
    upstream.add_image("library/app", "latest", layers=[shared])
    for strict in (False, True):
        mirror: Mirror = await start(tmp_path / str(strict), tag_ttl=0, settings=guard(cooldown="3d", strict=strict))
        assert (await mirror.get(LATEST)).status == 200
        new = upstream.add_image("library/app", "latest", layers=[shared, os.urandom(300)])
        # Before anybody has asked for the tag, nobody knows that it moved.
        assert (await mirror.get(f"/v2/app/manifests/{new.digest}")).status == 200
        assert "Mirror-Tag" in (await mirror.get(LATEST)).headers
        for method in ("GET", "HEAD"):
            assert (await mirror.get(f"/v2/app/manifests/{new.digest}", method)).status == (403 if strict else 200)
            assert (await mirror.get(f"/v2/app/blobs/{new.layers[1]}", method)).status == (403 if strict else 200)
            assert (await mirror.get(f"/v2/app/blobs/{new.layers[0]}", method)).status == 200


async def test_new_tags_can_be_held_too(start: StartMirror, upstream: Scripted) -> None:
    """There is nothing else to serve: the error says until when, and the registry is asked no more often than for a tag that is served."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(settings=guard(cooldown="3d", new_tags="hold"))
    for _ in range(3):
        got = await mirror.get(LATEST)
        assert got.status == 403
        assert "was first seen on" in json.loads(got.body)["errors"][0]["message"]
    assert len(upstream.asked) == 1


async def test_a_hold_is_known_after_a_restart_and_the_old_image_is_served_without_the_registry(
    start: StartMirror, upstream: Scripted
) -> None:
    """The history is on the disk."""
    old = upstream.add_image("library/app", "latest")
    cool = guard(cooldown="3d")
    mirror: Mirror = await start(tag_ttl=0, settings=cool)
    await mirror.get(LATEST)
    upstream.add_image("library/app", "latest")
    await mirror.get(LATEST)
    await mirror.stop()
    await upstream.stop()
    mirror = await start(tag_ttl=0, settings=cool)
    got = await mirror.get(LATEST)
    assert (got.body, "Mirror-Tag" in got.headers) == (old.body, True)


async def test_a_rule_that_observes_only_says_so(start: StartMirror, upstream: Scripted) -> None:
    """The new image is served at once, with a header and a count of what would have been done."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, settings=guard(name="try", cooldown="3d", mode="observe"))
    await mirror.get(LATEST)
    new, counted = upstream.add_image("library/app", "latest"), await mirror.metric("mirror_guard_total")
    got = await mirror.get(LATEST)
    assert (got.body, "Mirror-Tag" in got.headers) == (new.body, False)
    assert got.headers["Mirror-Guard"].startswith('"try"; would-hold; reason=')
    assert await mirror.metric("mirror_guard_total") - counted == 1


# ---------------------------------------------------------------------- block lists


async def test_a_tag_means_its_last_good_image_again(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """Within a second of the list's change, on hits, and without asking the registry: clients go on, with what was good. And forward when the list is mended."""
    old = upstream.add_image("library/app", "latest")
    settings = blocking(tmp_path)
    mirror: Mirror = await start(tag_ttl="1h", settings=settings)
    await mirror.get(LATEST)
    await mirror.stop()
    new = upstream.add_image("library/app", "latest")
    mirror = await start(tag_ttl=0, settings=settings)
    assert (await mirror.get(LATEST)).body == new.body
    await mirror.stop()
    mirror = await start(tag_ttl="1h", settings=settings)
    for _ in range(3):
        assert (await mirror.get(LATEST)).body == new.body
    asked = len(upstream.asked)
    write_list(tmp_path, new.layers[0])
    got = await until_it_is(mirror, old.body)
    assert got.headers["Mirror-Tag"] == f"held; new={new.digest}"
    assert (await mirror.get(f"/v2/app/manifests/{new.digest}")).status == 403
    write_list(tmp_path)
    got = await until_it_is(mirror, new.body)
    assert "Mirror-Tag" not in got.headers
    assert len(upstream.asked) == asked


async def test_an_advisory_feed_counts_at_once(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """A feed in OSV form is a block list: its reason is told, and what it withdraws is served again, within a second and without asking the registry."""
    image = upstream.add_image("library/app", "latest")
    feed = tmp_path / "feed.json"

    def publish(**more: str) -> None:
        affected = [{"package": {"ecosystem": "", "name": "app", "purl": f"pkg:oci/app@sha256%3A{image.digest.hex}"}}]
        (tmp_path / "new").write_text(json.dumps({"id": "ACME-1", "summary": "a miner", "affected": affected, **more}))
        (tmp_path / "new").replace(feed)

    publish(withdrawn="2026-01-01T00:00:00Z")
    mirror: Mirror = await start(settings=guard(name="feed", blocklist=[str(feed)]))
    assert (await mirror.get(LATEST)).body == image.body
    asked = len(upstream.asked)
    publish()
    for _ in patiently():
        got = await mirror.get(LATEST)
        if got.status == 403:
            break
    assert "ACME-1: a miner" in json.loads(got.body)["errors"][0]["message"]
    publish(withdrawn="2026-01-02T00:00:00Z")
    await until_it_is(mirror, image.body)
    assert len(upstream.asked) == asked


async def until_it_is(mirror: Mirror, body: bytes) -> Got:
    for _ in patiently():
        got = await mirror.get(LATEST)
        if got.body == body:
            return got
    raise AssertionError


def as_lines(digests: list[Digest]) -> bytes:
    return "".join(f"{digest} poisoned\n" for digest in digests).encode()


def as_osv(digests: list[Digest]) -> bytes:
    """A zip of records, as OSV exports an ecosystem."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for number, digest in enumerate(digests):
            affected = [{"package": {"purl": f"pkg:oci/app@sha256%3A{digest.hex}"}}]
            record = {"id": f"ACME-{number}", "modified": "2026-01-01T00:00:00Z", "summary": "poisoned", "affected": affected}
            archive.writestr(f"ACME-{number}.json", json.dumps(record))
    return made.getvalue()


@pytest.mark.parametrize("form", [as_lines, as_osv])
async def test_a_list_may_be_at_a_url_and_counts_while_that_does_not_answer(
    start: StartMirror,
    upstream: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    form: Callable[[list[Digest]], bytes],
) -> None:
    """As lines, or a feed of advisories. It is asked with its ETag, and what it said last is kept over a restart. A token in the query is sent to it, and is in no log and on no page."""
    caplog.set_level(logging.INFO, "mirror")
    monkeypatch.setattr(in_force, "_ASK", 0.0)
    image = upstream.add_image("library/app", "latest")
    listed: list[Digest] = []
    requests: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        requests.append(request.headers.get("If-None-Match"))
        assert request.query_string == "token=s3cret"
        tag = f'"{len(listed)}"'
        return web.Response(status=304) if requests[-1] == tag else web.Response(body=form(listed), headers={"ETag": tag})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    settings = guard(name="list", blocklist=[f"{site.name}/blocked.txt?token=s3cret"])
    mirror: Mirror = await start(settings=settings)
    await until_it_is(mirror, image.body)
    listed.append(image.layers[0])
    for _ in patiently():
        if (await mirror.get(LATEST)).status == 403:
            break
    for _ in patiently():
        if requests[-1] == '"1"':
            break
        await asyncio.sleep(0)
    await mirror.stop()
    await runner.cleanup()
    mirror = await start(settings=settings)
    refused = await mirror.get(LATEST)
    assert (refused.status, "poisoned" in json.loads(refused.body)["errors"][0]["message"]) == (403, True)
    for _ in patiently():
        if "cannot be had" in caplog.text:
            break
        await asyncio.sleep(0)
    login = {"token": (mirror.directory / "admin-token").read_text().strip()}
    async with mirror.session.post("/login", data=login, headers={"Accept": "text/html"}, allow_redirects=False) as logged_in:
        admin = {"Accept": "text/html", "Cookie": logged_in.headers["Set-Cookie"].partition(";")[0]}
    pages = [await mirror.get(page, **admin) for page in ("/", "/guards", "/settings", "/metrics", "/readyz")]
    assert "/blocked.txt?…" in html.unescape(pages[2].body.decode())
    assert "s3cret" not in caplog.text + "".join(page.body.decode() for page in pages)


@pytest.mark.parametrize("by_hand", [False, True], ids=["list", "by hand"])
@pytest.mark.parametrize("state", ["download", "hit", "hit without sendfile"])
async def test_what_is_blocked_on_its_way_is_cut(
    start: StartMirror, upstream: Scripted, tmp_path: Path, state: str, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets the rest: whoever joined a download that is half-way, or reads what is cached, over TLS or not. Later requests are refused. By hand, there was no rule before."""
    data = b"x" * 16_000_000
    image = upstream.add_image("library/app", "latest", layers=[data])
    layer = image.layers[0]
    mirror: Mirror = await start(settings={} if by_hand else blocking(tmp_path))
    path = f"/v2/app/blobs/{layer}"
    if state == "hit without sendfile":

        def none_left(_: object) -> None:
            raise OSError

        monkeypatch.setattr(context, "FileSender", none_left)
    if state != "download":
        assert (await mirror.get(path)).status == 200
        await mirror.until_cached(layer)
        readers = [await mirror.slow_reader(path) for _ in range(2)]
        held = None
    else:
        held = Hold(after=1_000_000)
        upstream.fail(str(layer), held, times=10)
        readers = [await mirror.slow_reader(path) for _ in range(2)]
        await held.reached.wait()
    if by_hand:
        await Commands(mirror.directory)("block", str(layer))
    else:
        write_list(tmp_path, layer)
    for _ in patiently():
        if (await mirror.head(path)).status == 403:
            break
    if held is not None:
        held.release.set()
        upstream.heal()
    for reader, writer in readers:
        received = 0
        try:
            while piece := await reader.read(1_000_000):
                received += len(piece)
        except ConnectionError:
            pass
        assert received < len(data)
        writer.close()
    assert (await mirror.get(path)).status == 403


async def test_what_is_blocked_is_not_prefetched(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """A layer's request has the rest of each image fetched that has it, but for images that nobody gets."""
    image = upstream.add_image("library/app", "latest", layers=[b"a" * 1000, b"b" * 1000, b"c" * 1000])
    good = upstream.add_image("library/app", "good", layers=[b"a" * 1000, b"d" * 1000])
    mirror: Mirror = await start(prefetch=True, settings=blocking(tmp_path))
    assert (await mirror.get("/v2/app/manifests/good")).status == 200
    assert (await mirror.get(LATEST)).status == 200
    write_list(tmp_path, image.layers[1])
    for _ in patiently():
        if (await mirror.get(LATEST)).status == 403:
            break
    assert (await mirror.get(f"/v2/app/blobs/{image.layers[0]}")).status == 200
    await mirror.until_cached(good.layers[1])
    assert [upstream.count("GET", str(layer)) for layer in image.layers] == [1, 0, 0]


async def test_referrers_that_are_blocked_are_not_listed(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """The others are."""
    image = upstream.add_image("library/app", "latest")
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(image.digest), "size": len(image.body)}
    good, bad = (upstream.add_image("library/app", subject=subject) for _ in range(2))
    mirror: Mirror = await start(settings=blocking(tmp_path, bad.digest))
    listed = json.loads((await mirror.get(f"/v2/app/referrers/{image.digest}")).body)["manifests"]
    assert [entry["digest"] for entry in listed] == [str(good.digest)]
    assert (await mirror.get(f"/v2/app/manifests/{bad.digest}")).status == 403


async def test_a_bundle_has_the_last_good_image(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """A tag that means something blocked is exported as it was before."""
    mirror: Mirror = await start(tag_ttl=0, settings=blocking(tmp_path))
    images = []
    for _ in range(2):
        images.append(upstream.add_image("library/app", "latest"))
        assert (await mirror.get(LATEST)).body == images[-1].body
        for blob in (images[-1].config, *images[-1].layers):
            await mirror.get(f"/v2/app/blobs/{blob}")
            await mirror.until_cached(blob)
    old, new = images
    write_list(tmp_path, new.digest)
    await until_it_is(mirror, old.body)
    bundle = (await mirror.get("/export/app:latest.tar")).body
    with tarfile.open(fileobj=BytesIO(bundle)) as tar:
        names = {name.rpartition("/")[2] for name in tar.getnames()}
    assert (old.digest.hex in names, new.digest.hex in names) == (True, False)


# ---------------------------------------------------------------------- by hand


async def test_a_release_serves_what_was_held_with_who_and_why_in_the_history(start: StartMirror, upstream: Scripted) -> None:
    """Though the tag is fresh: the registry is asked, and the new image fetched. If the tag moves once more, that is held again."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0, settings=guard(cooldown="3d"))
    commands = Commands(mirror.directory)
    await mirror.get(LATEST)
    new = upstream.add_image("library/app", "latest")
    assert (await mirror.get(LATEST)).body != new.body
    done = await commands.json("release", "app", "--why", "CVE-2026-1", SUDO_USER="ann")
    assert (done["digest"], done["by"]) == (str(new.digest), "ann")
    assert "Mirror-Tag" not in (await until_it_is(mirror, new.body)).headers
    another = upstream.add_image("library/app", "latest")
    got = await mirror.get(LATEST)
    assert (got.body, str(another.digest) in got.headers["Mirror-Tag"]) == (new.body, True)
    history = (await commands.json("history", "app"))["history"]
    assert [entry["digest"] for entry in history][1:] == [str(new.digest), str(another.digest)]
    assert [entry["endpoint"] for entry in history] == [upstream.url] * 3
    assert history[1]["released_by"] == "ann"
    assert [entry["served"] is not None for entry in history] == [True, True, False]
    text = await commands("history", "app")
    assert "released by ann: CVE-2026-1" in text
    assert "never served" in text


async def test_a_release_by_digest_is_of_the_tags_that_mean_it(start: StartMirror, upstream: Scripted) -> None:
    """Of the repository, and of no other; what `strict` refuses by its digest is served then. A digest that no tag means any more is an error that says so."""
    for repository, tag in (("app", "1"), ("app", "2"), ("app", "3"), ("other", "1")):
        upstream.add_image(f"library/{repository}", tag)
    mirror: Mirror = await start(tag_ttl=0, settings=guard(cooldown="3d", strict=True))
    commands = Commands(mirror.directory)
    waiting = [f"/v2/{name}/manifests/{tag}" for name, tag in (("app", "1"), ("app", "2"), ("app", "3"), ("other", "1"))]
    first = [(await mirror.get(path)).body for path in waiting]
    same: dict[str, Any] = {"layers": [os.urandom(100)], "configuration": {"salt": ""}}
    new = [upstream.add_image(f"library/{name}", tag, **same) for name, tag in (("app", "1"), ("app", "2"), ("other", "1"))]
    assert len({one.digest for one in new}) == 1
    other = upstream.add_image("library/app", "3")
    assert [(await mirror.get(path)).body for path in waiting] == first
    by_digest = f"/v2/app/manifests/{new[0].digest}"
    assert (await mirror.get(by_digest)).status == 403
    done = await commands.json("release", f"app@{new[0].digest}", "--why", "CVE-2026-1", SUDO_USER="ann")
    assert (done["tags"], done["digest"]) == (["1", "2"], str(new[0].digest))
    for _ in patiently():
        if (await mirror.get(by_digest)).status == 200:
            break
    assert [(await mirror.get(path)).body for path in waiting] == [new[0].body, new[0].body, *first[2:]]
    upstream.add_image("library/app", "3")
    await mirror.get(waiting[2])
    refused = await commands.run("release", f"app@{other.digest}", "--why", "x")
    assert (refused.returncode, "no tag of docker.io/library/app was seen to mean" in refused.stderr) == (1, True)


async def test_a_block_by_hand_counts_without_any_table_and_ends_by_hand(start: StartMirror, upstream: Scripted) -> None:
    """Within a second, in a mirror that runs."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    commands = Commands(mirror.directory)
    assert (await mirror.get(LATEST)).status == 200
    await commands("block", str(image.layers[0]), "--reason", "a miner")
    for _ in patiently():
        got = await mirror.get(LATEST)
        if got.status == 403:
            break
    assert "a miner" in json.loads(got.body)["errors"][0]["message"]
    await commands("unblock", str(image.layers[0]))
    await until_it_is(mirror, image.body)
    await commands("unblock", str(image.layers[0]), status=1)


async def test_decisions_by_hand_are_in_the_audit_log(upstream: Scripted, start: StartMirror, tmp_path: Path) -> None:
    """By command and on the dashboard: who, what and why."""
    image = upstream.add_image("library/app", "latest")
    log = tmp_path / "audit.log"
    mirror: Mirror = await start(settings={"server": {"audit_log": str(log)}})
    await mirror.get(LATEST)
    (tmp_path / "mirror.toml").write_text(f'[server]\naudit_log = "{log}"\n')
    commands, more = Commands(mirror.directory), ("--config", str(tmp_path / "mirror.toml"))
    await commands("release", "app", "--why", "urgent", *more, SUDO_USER="ann")
    await commands("block", str(image.config), "--reason", "a miner", *more, SUDO_USER="ann")
    await commands("unblock", str(image.config), *more, SUDO_USER="ann")
    form = {"action": "block", "digest": str(image.digest), "why": "poisoned"}
    async with mirror.session.post("/guards", data=form, headers={"Authorization": f"Bearer {token(mirror)}"}) as answer:
        assert answer.status == 200
    await mirror.stop()
    found = [json.loads(line) for line in log.read_text().splitlines()]
    by_hand = [
        (one["user"], one["action"], one.get("repository"), one.get("reference"), one["digest"], one.get("reason"))
        for one in found
        if one["action"] in ("release", "block", "unblock")
    ]
    assert by_hand == [
        ("ann", "release", "docker.io/library/app", "latest", str(image.digest), "urgent"),
        ("ann", "block", None, None, str(image.config), "a miner"),
        ("ann", "unblock", None, None, str(image.config), None),
        ("the dashboard, from 127.0.0.1", "block", None, None, str(image.digest), "poisoned"),
    ]


@pytest.mark.parametrize("how", ["tag", "digest", "layer", "refused", "refused digest"])
async def test_who_had_it_is_known_without_rules_for_access(
    upstream: Scripted, start: StartMirror, tmp_path: Path, how: str
) -> None:
    """`mirror who` needs the audit log only: it names each pull, also one that is answered from memory, by the digest of a layer too, and what a guard refused, by tag and by
    the digest that the tag meant."""
    image = upstream.add_image("library/app", "latest")
    bad = upstream.add_image("library/bad", "1")
    log = tmp_path / "audit.log"
    settings = guard(name="no", images=["bad"], deny=True) | {"server": {"audit_log": str(log)}}
    mirror: Mirror = await start(settings=settings)
    denied = how.startswith("refused")
    path = f"/v2/app/manifests/{image.digest}" if how == "digest" else "/v2/bad/manifests/1" if denied else LATEST
    for _ in range(3):
        assert (await mirror.get(path)).status == (403 if denied else 200)
    await mirror.stop()
    (tmp_path / "mirror.toml").write_text(f'[server]\naudit_log = "{log}"\n')
    wanted = {"layer": str(image.layers[0]), "refused": "bad:1", "refused digest": str(bad.digest)}.get(how, str(image.digest))
    said = await Commands(mirror.directory)("who", wanted, "--config", str(tmp_path / "mirror.toml"), "--json")
    found = [(one["address"], one["action"], one["verdict"], one.get("reason")) for one in json.loads(said)]
    assert (
        found
        == [("127.0.0.1", "pull", "denied" if denied else "allowed", 'guard "no"; refused: it is denied' if denied else None)] * 3
    )


async def test_a_pull_by_command_gets_what_clients_get(start: StartMirror, upstream: Scripted) -> None:
    """What is held is not pulled, and what is blocked is an error."""
    old = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    commands = Commands(mirror.directory, upstream)
    await commands("pull", "app")
    await commands("block", str(old.layers[0]))
    new = upstream.add_image("library/app", "latest")
    await commands("pull", "app")
    assert (await mirror.get(LATEST)).body == new.body
    await commands("block", str(new.config))
    done = await commands.run("pull", "app")
    assert done.returncode == 1
    assert "is blocked" in done.stdout + done.stderr
    done = await commands.run("export", "app", "--offline", "-o", str(mirror.directory / "app.tar"))
    assert done.returncode == 1
    assert "is blocked" in done.stderr


async def test_an_archive_brings_in_nothing_that_is_blocked(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """The image is named with the reason, and gets no tag."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    commands = Commands(mirror.directory, upstream)
    archive = str(tmp_path / "app.tar")
    await commands("export", "app", "-o", archive)
    other = Commands(tmp_path / "other")
    await other("block", str(image.layers[0]), "--reason", "a miner")
    done = await other.run("import", archive)
    assert done.returncode == 1
    assert "a miner" in done.stdout + done.stderr
    assert await other("ls", "--json") in ("[]\n", '{"images": []}\n') or str(image.digest) not in await other("ls", "--json")
    await other("unblock", str(image.layers[0]))
    await other("import", archive)


async def test_a_change_counts_in_all_workers_within_a_second(upstream: Scripted, tmp_path: Path) -> None:
    """Every connection of many is refused from then on, whichever worker it reaches."""
    image = upstream.add_image("library/app", "latest")
    process = MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--workers", "2")
    with process:

        async def statuses() -> set[int]:
            found = set()
            for _ in range(12):
                async with aiohttp.ClientSession() as session, session.get(f"{process.url}{LATEST}") as got:
                    found.add(got.status)
            return found

        assert await statuses() == {200}
        await Commands(tmp_path / "cache")("block", str(image.digest))
        for _ in patiently():
            if await statuses() == {403}:
                break
        assert len(process.workers) == 2


# ---------------------------------------------------------------------- what Prometheus sees


async def test_the_metrics_tell_what_is_held_and_by_which_check(
    start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting of a table is counted apart, from 0 on; how long something is held, and whether a list cannot be read, until it can."""
    monkeypatch.setattr(in_force, "_SHOW", 0.05)
    monkeypatch.setattr(in_force, "_LOOK", 0.05)
    upstream.add_image("library/app", "latest")
    blocked = upstream.add_image("library/bad", "1")
    list_ = tmp_path / "blocked.txt"
    list_.write_text(f"{blocked.digest} poisoned\n")
    mirror: Mirror = await start(tag_ttl=0, settings=guard(name="both", cooldown="3d", blocklist=[str(list_)]))

    async def counts() -> dict[str, float]:
        text = (await mirror.get("/metrics")).body.decode()
        found = {}
        for line in text.splitlines():
            if line.startswith("mirror_guard_total{") and 'rule="both"' in line:
                labels, value = line.rsplit(" ", 1)
                found[labels.partition('check="')[2].replace('",rule="both",verdict="', " ").removesuffix('"}')] = float(value)
        return found

    before = await counts()
    assert set(before) >= {"cooldown held", "cooldown refused", "blocklist held", "blocklist refused"}
    assert (await mirror.get("/v2/bad/manifests/1")).status == 403
    await mirror.get(LATEST)
    upstream.add_image("library/app", "latest")
    assert "Mirror-Tag" in (await mirror.get(LATEST)).headers
    after = await counts()
    assert {name: after[name] - before[name] for name in before if after[name] != before[name]} == {
        "cooldown held": 1,
        "blocklist refused": 1,
    }
    for _ in patiently():
        if await mirror.metric("mirror_guard_held_tags") == 1 and await mirror.metric("mirror_guard_held_seconds") > 0:
            break
        await asyncio.sleep(0.05)
    away = list_.rename(tmp_path / "away")
    for expected in (1, 0):
        for _ in patiently():
            if await mirror.metric("mirror_guard_lists_unreadable") == expected:
                break
            await asyncio.sleep(0.05)
        if expected:
            # As it was: the same file with the same date.
            away.rename(list_)
    assert (await mirror.get("/v2/bad/manifests/1")).status == 403


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", ["tag", "manifest", "blob"])
async def test_the_header_says_why_something_is_refused(start: StartMirror, upstream: Scripted, method: str, what: str) -> None:
    """For each way, also where there is no body; of a long reason as much as any client takes, and nothing that would end the header."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    path = {"tag": LATEST, "manifest": f"/v2/app/manifests/{image.digest}", "blob": f"/v2/app/blobs/{image.layers[0]}"}[what]
    assert (await mirror.get(LATEST)).status == 200
    await mirror.stop()
    async with wiring.store(load(None, {}, {"cache": {"dir": str(mirror.directory)}})) as store:
        await store.block(Block(image.layers[0], 'a "miner"\r\nX: y' + "z" * 100_000, "ann", 1.0))
    mirror = await start(mirror.directory)
    got = await mirror.get(path, method)
    assert got.status == 403
    assert got.headers["Mirror-Guard"].startswith('"by hand"; refused; reason="')
    assert 'a \\"miner\\"??X: yzzz' in got.headers["Mirror-Guard"]
    assert len(got.headers["Mirror-Guard"]) < 700
    assert "X" not in got.headers
