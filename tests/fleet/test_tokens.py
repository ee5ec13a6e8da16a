"""To whom a mirror shows which token: the fleet's to mirrors of the fleet only, a parent's own to that parent, and none to anybody else."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest

from mirror.access.access import TOKENS
from mirror.access.tokens import add_token
from mirror.config import ConfigError, load
from mirror.doctor import fleet as doctor
from mirror.fleet_documents import Change
from mirror.names import Digest
from mirror.upstream.fleet import ranked
from mirror.upstream.members import Members
from tests.fleet.test_fleet import of, pull
from tests.support.members import start_mutual_parents
from tests.support.mirrors import StartMirror, until
from tests.support.ports import free_port
from tests.support.s3 import ENVIRONMENT
from tests.support.scripted import Redirect, Scripted

TOKEN = "the-token-of-this-fleet"
OF_PARENT = "a-token-of-the-parent"


def seen(server: Scripted, path: str) -> set[str | None]:
    """What requests below a path have shown to it."""
    return {asked.authorization for asked in server.asked if asked.path.startswith(path)}


async def test_each_is_shown_its_own_token_and_no_other(
    start: StartMirror, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is asked: tags, manifests, blobs, looks, how all of them are, changes by hand, the doctor. Nobody is followed to another host, and no log has a token."""
    caplog.set_level(logging.DEBUG)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "fleet").write_text(TOKEN)
    (tmp_path / "parent").write_text(OF_PARENT)
    async with contextlib.AsyncExitStack() as stack:
        peer, known, stranger, bucket, elsewhere = [await stack.enter_async_context(Scripted()) for _ in range(5)]
        own = f"http://127.0.0.1:{free_port()}"
        parents = [stranger.url, {"url": known.url, "token_file": str(tmp_path / "parent")}]
        table = {
            "mirrors": [own, peer.url],
            "own": own,
            "token_file": str(tmp_path / "fleet"),
            "parents": parents,
            "bucket": "s3://images",
            "bucket_endpoint": bucket.url,
        }
        mirror = await start(settings={"server": {"listen": own.removeprefix("http://")}, "fleet": table})
        for server in (peer, known, stranger):
            server.fail("/v2/library/", Redirect(elsewhere.url), times=100, method="*")

        def homed(key: str) -> bool:
            return ranked((own, peer.url), key)[0] == peer.url

        tag = next(str(number) for number in range(1000) if homed(f"docker.io/library/app:{number}"))
        while not homed(str(Digest.of(layer := os.urandom(100)))):
            pass
        image = upstream.add_image("library/app", tag, layers=[layer])
        await mirror.head(f"/v2/library/app/manifests/{tag}")
        await pull(mirror, image, tag)
        await mirror.head(of(image.layers[0]))
        members = Members(load(None, {}, {"fleet": table}).fleet)
        await members.tell(Change("pin", ("docker.io/library/app:1",)))
        await members.states()
        await members.lists("images", {})
        await doctor.examine(load(None, {}, {"fleet": table}))
        # Looked at, once they are known to be dead.
        while not homed(str(unknown := Digest.of(os.urandom(9)))):
            pass
        for server in (peer, known, stranger):
            await server.stop()
        await mirror.get(of(unknown))
        for server in (peer, known, stranger):
            await server.start()
        await until(lambda: all(server.count("GET", "/healthz") for server in (peer, known, stranger)))
        assert seen(peer, "/v2/") == seen(peer, "/fleet/") == {f"Bearer {TOKEN}"}
        assert seen(known, "/v2/") == {f"Bearer {OF_PARENT}"}
        assert seen(stranger, "/") == {None}
        assert seen(peer, "/healthz") == seen(known, "/healthz") == {None}
        assert seen(known, "/fleet/") == seen(stranger, "/fleet/") == set()
        assert all(server.count("GET", "/blobs/") and server.count("HEAD", "/manifests/") for server in (peer, known, stranger))
        assert all(asked.query == "ns=docker.io" for asked in stranger.asked if "/library/" in asked.path)
        assert bucket.count("GET", "/images/blobs/") >= 1
        shown = [asked.authorization or "" for server in (bucket, upstream) for asked in server.asked]
        assert not any(token in one for one in shown for token in (TOKEN, OF_PARENT))
        assert elsewhere.asked == []
    assert not any(token in record.getMessage() for record in caplog.records for token in (TOKEN, OF_PARENT))


@pytest.mark.parametrize("has_token", [True, False])
async def test_a_parent_lets_in_whom_it_knows(start: StartMirror, upstream: Scripted, tmp_path: Path, has_token: bool) -> None:
    """By a token that was made there, with the rights of that token. Without one the parent refuses, and the registry is asked: no pull fails."""
    folder = tmp_path / "above" / "access"
    (tmp_path / "token").write_text(add_token(folder / TOKENS, "branch", None, (), None))
    above = await start(tmp_path / "above", settings={"access": [{"who": ["token:branch"]}, {"who": ["anyone"], "may": []}]})
    parent = {"url": above.url, "token_file": str(tmp_path / "token")} if has_token else above.url
    below = await start(tmp_path / "below", settings={"fleet": {"parents": [parent]}})
    image = upstream.add_image("library/app", "1")
    await pull(below, image)
    assert upstream.count("GET", str(image.layers[0])) == 1
    if has_token:
        await above.until_cached(image.layers[0])
    assert above.cached(image.layers[0]) is has_token
    settings = load(None, {}, {"fleet": {"parents": [parent]}, "cache": {"dir": str(tmp_path)}})
    (finding,) = await doctor.examine(settings)
    # At the address that never asks for a login, nobody is told at once.
    assert finding.level == "ok"


async def test_a_loop_of_parents_is_told_by_who_closes_it(start: StartMirror, upstream: Scripted, tmp_path: Path) -> None:
    """In /readyz, which the doctor repeats: by the one that is told 508, which no client can tell it."""
    mirrors = await start_mutual_parents(start, tmp_path)
    await pull(mirrors[0], upstream.add_image("library/app", "1"))
    assert b"fleet.parents" not in (await mirrors[0].get("/readyz")).body
    assert b"out of fleet.parents" in (await mirrors[1].get("/readyz")).body


def test_tokens_that_travel_unencrypted_are_named(tmp_path: Path) -> None:
    """Not those to this machine, by https, or where none is set. That of the fleet is refused as a parent's, whatever its file is called."""
    (tmp_path / "token").write_text(TOKEN)
    mirrors = ["http://a.lan:5000", "https://b.lan", "http://localhost:1", "http://own.lan"]
    table = {"mirrors": mirrors, "own": "http://own.lan", "parents": ["http://c.lan"]}
    assert load(None, {}, {"fleet": table}).fleet.in_clear == []
    (tmp_path / "copy").write_text(f"{TOKEN}\n")
    parent = {"url": "http://d.lan", "token_file": str(tmp_path / "copy")}
    shown = {"token_file": str(tmp_path / "token"), "parents": ["http://c.lan", parent]}
    with pytest.raises(ConfigError, match="made there"):
        load(None, {}, {"fleet": {**table, **shown}})
    (tmp_path / "parent").write_text(OF_PARENT)
    parent["token_file"] = str(tmp_path / "parent")
    assert load(None, {}, {"fleet": {**table, **shown}}).fleet.in_clear == ["http://a.lan:5000", "http://d.lan"]
