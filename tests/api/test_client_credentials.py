"""A registry whose clients log in to it themselves, through the mirror: what is cached is shared, and given only to those to whom the registry gives it.

Two users with different rights, and whoever has none, in front of a scripted registry that counts; the mirror's clock is the test's.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from mirror import wiring
from mirror.access.upstream_checks import UpstreamChecks
from mirror.names import Digest
from tests.support.mirrors import Got, Mirror, StartMirror, read_to_end, until
from tests.support.ports import free_port
from tests.support.scripted import Hold, Image, Scripted, Status

SECRET_LAYER = b"a secret layer of alice's image" * 10
ACCOUNTS = {"alice": "correct horse", "bob": "battery staple"}
RIGHTS = {"alice": {"acme/a", "acme/free"}, "bob": {"acme/b", "acme/free"}, "": {"acme/free"}}


def basic(user: str, password: str | None = None) -> str:
    return "Basic " + base64.b64encode(f"{user}:{ACCOUNTS.get(user, '') if password is None else password}".encode()).decode()


@dataclass
class Scene:
    """A mirror of ghcr.io with ``credentials = "client"``, and of docker.io without; all images are cached, and nobody's check holds."""

    mirror: Mirror
    registry: Scripted
    hub: Scripted
    login: str
    """The URL of the address that is for logging in."""
    private: Image
    """acme/a:1, for alice."""
    other: Image
    """acme/b:1, for bob."""
    free: Image
    public: Image
    index: Digest
    now: float = 1_800_000_000.0

    async def get(self, path: str, user: str | None = None, method: str = "GET", base: str = "", **headers: str) -> Got:
        if user is not None:
            headers["Authorization"] = basic(user)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = URL(f"{base or self.mirror.url}{path}", encoded=True)
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=sent, allow_redirects=False) as answer,
        ):
            return await read_to_end(answer)

    async def bearer(self, user: str | None, scope: str = "", password: str | None = None) -> tuple[int, str]:
        headers = {} if user is None else {"Authorization": basic(user, password)}
        query = f"&scope={scope}" if scope else ""
        answer = await self.get(f"/token?service=mirror{query}", base=self.login, **headers)
        document = json.loads(answer.body)
        return answer.status, f"Bearer {document.get('token')}"

    def asked(self, *repositories: str) -> int:
        """Requests to the registry itself, for some repositories."""
        return sum(1 for one in self.registry.asked if any(f"/v2/{name}/" in one.path for name in repositories or ("",)))

    def later(self) -> None:
        """No check holds any more."""
        self.now += 61

    def private_digests(self) -> dict[str, tuple[str, Digest]]:
        return {
            "index": ("manifests", self.index),
            "manifest": ("manifests", self.private.digest),
            "config": ("blobs", self.private.config),
            "layer": ("blobs", self.private.layers[0]),
        }


@pytest.fixture
async def registry() -> AsyncIterator[Scripted]:
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture(params=["bearer", "basic"])
def auth(request: pytest.FixtureRequest) -> str:
    """How the registry asks for credentials. A registry that asks for Basic gives nothing to whoever has none."""
    return str(request.param)


@pytest.fixture
async def scene(
    start: StartMirror, upstream: Scripted, registry: Scripted, auth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    return await make_scene(start, upstream, registry, auth, tmp_path, monkeypatch)


async def make_scene(
    start: StartMirror,
    upstream: Scripted,
    registry: Scripted,
    auth: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any] | None = None,
    registry_settings: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> Scene:
    """`more` are further registries."""
    registry.auth, registry.accounts, registry.rights, registry.keeps_apart = auth, dict(ACCOUNTS), dict(RIGHTS), True
    upstream.keeps_apart = True
    private = registry.add_image("acme/a", "1", layers=[SECRET_LAYER])
    index, _ = registry.add_index("acme/a", "latest", [private])
    other = registry.add_image("acme/b", "1")
    free = registry.add_image("acme/free", "1")
    public = upstream.add_image("library/public", "1", layers=[b"for all" * 50])
    port = free_port()
    clock: list[Scene] = []
    monkeypatch.setattr(wiring, "UpstreamChecks", partial(UpstreamChecks, clock=lambda: clock[0].now if clock else 0.0))
    mirror = await start(
        settings={
            "server": {"login_listen": f"127.0.0.1:{port}", "audit_log": str(tmp_path / "audit.log")},
            "registries": {
                "ghcr.io": {"endpoints": [registry.url], "credentials": "client", **(registry_settings or {})},
                **(more or {}),
            },
            **(settings or {}),
        },
        tag_ttl="1h",
    )
    scene = Scene(mirror, registry, upstream, f"http://127.0.0.1:{port}", private, other, free, public, index)
    clock.append(scene)
    for path, user in (
        ("/v2/ghcr.io/acme/a/manifests/latest", "alice"),
        ("/v2/ghcr.io/acme/a/manifests/1", "alice"),
        *((f"/v2/ghcr.io/acme/a/{kind}/{digest}", "alice") for kind, digest in scene.private_digests().values()),
        ("/v2/ghcr.io/acme/b/manifests/1", "bob"),
        (f"/v2/ghcr.io/acme/b/blobs/{other.layers[0]}", "bob"),
        ("/v2/library/public/manifests/1", None),
        (f"/v2/library/public/blobs/{public.layers[0]}", None),
        (f"/v2/library/public/blobs/{public.config}", None),
    ):
        answer = await scene.get(path, user)
        assert answer.status == 200, (path, answer.body)
    for digest in (*private.layers, private.config, *other.layers, *public.layers):
        await mirror.until_cached(digest)
    scene.later()
    return scene


async def test_each_client_gets_what_the_registry_gives_it(scene: Scene, auth: str) -> None:
    """From the cache, with the registry's leave: alice her image, bob his; what is for all is for all, also for whoever has no account, where the registry says so.
    Where clients are not challenged, the rest does not exist for them."""
    for user, name, status in (
        ("alice", "a", 200),
        ("alice", "b", 404),
        ("bob", "b", 200),
        ("bob", "a", 404),
        ("alice", "free", 200),
        ("bob", "free", 200),
        (None, "a", 404),
        (None, "b", 404),
        (None, "free", 200 if auth == "bearer" else 404),
    ):
        for path in (f"/v2/ghcr.io/acme/{name}/manifests/1", f"/v2/ghcr.io/acme/{name}/tags/list"):
            answer = await scene.get(path, user)
            assert answer.status == status, (user, path, answer.body)
            assert "WWW-Authenticate" not in answer.headers
            if status == 404:
                assert json.loads(answer.body)["errors"][0]["code"] == "NAME_UNKNOWN"
    assert scene.registry.sent[str(scene.private.layers[0])] == len(SECRET_LAYER), "downloaded once"


async def test_a_client_is_checked_once_a_minute(scene: Scene) -> None:
    """A whole pull, ten times over, costs the registry one HEAD a minute, with the client's own password or a token that it was got with; after a minute one more."""
    paths = ["/v2/ghcr.io/acme/a/manifests/1", f"/v2/ghcr.io/acme/a/manifests/{scene.private.digest}"]
    paths += [f"/v2/ghcr.io/acme/a/blobs/{digest}" for digest in (scene.private.config, *scene.private.layers)]
    for _ in range(2):
        before, since = scene.asked("acme/a"), len(scene.registry.asked)
        for _ in range(10):
            for path in paths:
                assert (await scene.get(path, "alice")).status == 200
        new = scene.registry.asked[since:]
        answered = [one for one in new if one.path.endswith("/acme/a/manifests/1")]
        # The challenge is known, so the first request carries what proves who asks.
        assert [one.method for one in answered] == ["HEAD"]
        assert scene.asked("acme/a") - before == 1
        tokens = [one for one in new if one.path == "/token"]
        assert [one.authorization for one in tokens] == [basic("alice")] * (scene.registry.auth == "bearer")
        scene.later()


async def test_a_password_that_was_changed_counts_a_minute_later_at_most(scene: Scene) -> None:
    """The old one is refused at the next check, though the registry's tokens for it would live on; the new one is good at once."""
    path = "/v2/ghcr.io/acme/a/manifests/1"
    assert (await scene.get(path, "alice")).status == 200
    scene.registry.accounts["alice"] = "a new password"
    assert (await scene.get(path, "alice")).status == 200
    assert (await scene.get(path, Authorization=basic("alice", "a new password"))).status == 200
    scene.later()
    assert (await scene.get(path, "alice")).status == 404
    assert (await scene.get(path, Authorization=basic("alice", "a new password"))).status == 200
    scene.registry.accounts["alice"] = ACCOUNTS["alice"]
    assert (await scene.get(path, "alice")).status == 404, "a refusal holds for a minute"
    scene.later()
    assert (await scene.get(path, "alice")).status == 200


async def test_a_right_that_was_taken_away_counts_for_what_is_in_memory_too(scene: Scene) -> None:
    """Equal requests on one connection, which are answered without being parsed: after a minute the registry is asked, and its refusal counts."""
    async with aiohttp.ClientSession() as session:

        async def status() -> int:
            headers = {"Authorization": basic("alice")}
            async with session.get(f"{scene.mirror.url}/v2/ghcr.io/acme/a/manifests/1", headers=headers) as answer:
                await answer.read()
                return answer.status

        assert [await status() for _ in range(5)] == [200] * 5
        scene.registry.rights["alice"] = set()
        assert [await status() for _ in range(5)] == [200] * 5
        scene.later()
        assert [await status() for _ in range(5)] == [404] * 5


async def test_clients_of_one_connection_are_told_apart(scene: Scene) -> None:
    """As behind a proxy that keeps connections: what one client has sent is not used for the next, neither to let it in nor to ask the registry."""
    async with aiohttp.ClientSession() as session:
        for user, status in (("alice", 200), (None, 404), ("bob", 404), ("alice", 200), (None, 404)):
            headers = {} if user is None else {"Authorization": basic(user)}
            since = len(scene.registry.asked)
            async with session.get(f"{scene.mirror.url}/v2/ghcr.io/acme/a/manifests/1", headers=headers) as answer:
                assert (answer.status, user) == (status, user)
                await answer.read()
            used = {one.authorization for one in scene.registry.asked[since:] if one.authorization}
            assert {one for one in used if one.startswith("Basic")} <= ({basic(user)} if user else set())


NAMES = {
    "its own": "/v2/ghcr.io/acme/a/{what}",
    "with ns": "/v2/acme/a/{what}?ns=ghcr.io",
    "before v2": "/ghcr.io/v2/acme/a/{what}",
    "with slashes": "//v2/ghcr.io/acme/a/{what}",
    "encoded": "/v2/ghcr.io/%61cme/a/{what}",
    "of bob's own image": "/v2/ghcr.io/acme/b/{what}",
    "of what is for all": "/v2/ghcr.io/acme/free/{what}",
    "of an image that there is not": "/v2/ghcr.io/acme/nothing/{what}",
    "of another registry": "/v2/library/public/{what}",
    "of another registry by ns": "/v2/library/public/{what}?ns=docker.io",
    "of another registry, the same name": "/v2/docker.io/acme/a/{what}",
    "doubled": "/v2/ghcr.io/ghcr.io/acme/a/{what}",
}


@pytest.mark.parametrize("auth", ["bearer"], indirect=True)
@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
async def test_no_name_leads_to_what_is_not_ones_own(scene: Scene, name: str) -> None:
    """For each manifest, configuration and layer of alice's image, a minute and no time after she pulled it: whatever name bob or a stranger asks by, whole or in
    part, no byte and no size comes, and nothing is fetched for them."""
    for kind, digest in scene.private_digests().values():
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
        for user, method in itertools.product((None, "bob"), ("GET", "HEAD")):
            for headers in ({}, {"Range": "bytes=0-9"}, {"If_None_Match": f'"{digest}"'}):
                answer = await scene.get(name.format(what=f"{kind}/{digest}"), user, method, **headers)
                assert answer.status == 404, (kind, user, method, headers, answer.headers)
                assert "Docker-Content-Digest" not in answer.headers
                assert SECRET_LAYER[:20] not in answer.body
    assert scene.registry.sent[str(scene.private.layers[0])] == len(SECRET_LAYER)


OTHERS = {
    "tags": "/v2/ghcr.io/acme/a/tags/list",
    "referrers": "/v2/ghcr.io/acme/a/referrers/{manifest}",
    "export": "/export/ghcr.io/acme/a:1.tar",
    "export by digest": "/export/ghcr.io/acme/a@{manifest}.tar",
    "export by digest of bob's": "/export/ghcr.io/acme/b@{manifest}.tar",
    "export by digest of another": "/export/docker.io/library/public@{manifest}.tar",
    "export of several": "/export/lab.tar?images=library/public:1,ghcr.io/acme/a:1",
    "export of all": "/export/all.tar?images=*",
    "catalog": "/v2/_catalog",
    "catalog of the registry": "/v2/ghcr.io/_catalog",
    "search": "/v1/search?q=acme",
    "overview": "/",
    "images": "/images",
    "image": "/image/ghcr.io/acme/a:1",
    "repository": "/repository/ghcr.io/acme/a",
    "events": "/events",
    "metrics": "/metrics",
    "readiness": "/readyz",
}


@pytest.mark.parametrize("auth", ["bearer"], indirect=True)
@pytest.mark.parametrize("path", OTHERS.values(), ids=list(OTHERS))
async def test_nothing_names_what_is_not_ones_own(scene: Scene, path: str) -> None:
    """No list, page, bundle, search or figure names alice's image to bob or a stranger, also while her own check holds."""
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
    url = path.format(manifest=scene.private.digest)
    for user in (None, "bob"):
        for accept in ("*/*", "text/html"):
            answer = await scene.get(url, user, Accept=accept)
            assert answer.status in (200, 303, 401, 404), (answer.status, answer.body)
            for hidden in (b"acme/a", str(scene.private.layers[0]).encode(), SECRET_LAYER[:20]):
                # What was asked for may be repeated.
                assert hidden not in answer.body or hidden.decode() in url or answer.status == 404
            assert str(scene.private.layers[0]).encode() not in answer.body


async def test_whoever_was_checked_lately_finds_its_own_in_lists(scene: Scene) -> None:
    """The catalog names, and a bundle of all has, what alice's last check was of, and for her alone; a bundle by name is checked when she asks for it."""
    catalog = "/v2/_catalog"
    assert b"acme/a" not in (await scene.get(catalog, "alice")).body
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
    assert b"acme/a" in (await scene.get(catalog, "alice")).body
    assert b"acme/b" not in (await scene.get(catalog, "alice")).body
    assert SECRET_LAYER in (await scene.get("/export/all.tar?images=*", "alice")).body
    assert SECRET_LAYER not in (await scene.get("/export/all.tar?images=*", "bob")).body
    scene.later()
    before = scene.asked("acme/a")
    assert SECRET_LAYER in (await scene.get("/export/ghcr.io/acme/a:1.tar", "alice")).body
    assert scene.asked("acme/a") == before + 1


async def test_nothing_is_mounted_from_what_is_not_ones_own(
    start: StartMirror, upstream: Scripted, registry: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push that would mount alice's layer into a repository that lives here: hers does, once she was checked; bob's and a stranger's have to send the bytes."""
    hosted = {"hosted": {"repositories": ["team/**"]}}
    scene = await make_scene(start, upstream, registry, "bearer", tmp_path, monkeypatch, hosted)
    digest = scene.private.layers[0]
    for source in ("&from=ghcr.io/acme/a", "&from=ghcr.io/acme/b", "&from=library/public", ""):
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
        for user in ("bob", None):
            answer = await scene.get(f"/v2/team/theirs/blobs/uploads/?mount={digest}{source}", user, "POST")
            assert answer.status == 202, (source, user)
            assert (await scene.get(f"/v2/team/theirs/blobs/{digest}", user)).status == 404
    assert (await scene.get(f"/v2/team/hers/blobs/uploads/?mount={digest}&from=ghcr.io/acme/a", "alice", "POST")).status == 201


async def test_a_download_is_shared_by_those_who_may_have_it(scene: Scene) -> None:
    """While alice's layer is being downloaded with her password: carol, who may pull it too, joins; bob gets neither a byte nor a size. The registry sends it once."""
    layer = b"x" * 300_000
    fresh = scene.registry.add_image("acme/a", "fresh", layers=[layer])
    scene.registry.accounts["carol"], scene.registry.rights["carol"] = "third", {"acme/a"}
    digest = str(fresh.layers[0])
    hold = Hold(after=100_000)
    scene.registry.fail(digest, hold)
    path = f"/v2/ghcr.io/acme/a/blobs/{digest}"
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/fresh", "alice")).status == 200
    first = asyncio.create_task(scene.get(path, "alice"))
    await hold.reached.wait()
    second = asyncio.create_task(scene.get(path, Authorization=basic("carol", "third")))
    for name in ("a", "b", "free"):
        for method in ("GET", "HEAD"):
            for user in ("bob", None):
                assert (await scene.get(f"/v2/ghcr.io/acme/{name}/blobs/{digest}", user, method, Range="bytes=0-9")).status == 404
    await until(lambda: any(one.authorization == basic("carol", "third") for one in scene.registry.asked))
    hold.release.set()
    assert [(await task).body for task in (first, second)] == [layer, layer]
    assert scene.registry.sent[digest] == len(layer)


async def test_a_miss_is_fetched_with_the_clients_own_password(scene: Scene) -> None:
    """Manifest, configuration and layer of a new image: each request to the registry that is let through carries what alice sent, or a token for it, and the other
    registry gets neither."""
    fresh = scene.registry.add_image("acme/a", "fresh")
    since = len(scene.registry.asked)
    for what in ("manifests/fresh", f"blobs/{fresh.config}", f"blobs/{fresh.layers[0]}"):
        assert (await scene.get(f"/v2/ghcr.io/acme/a/{what}", "alice")).status == 200
    new = scene.registry.asked[since:]
    given = {one.authorization for one in new if one.path == "/token" or scene.registry.auth == "basic"}
    assert given == {basic("alice")}
    assert (await scene.get("/v2/library/public/manifests/1", "alice")).status == 200
    other = scene.hub.add_image("library/other", "1")
    assert (await scene.get("/v2/library/other/manifests/1", "alice")).status == 200
    assert (await scene.get(f"/v2/library/other/blobs/{other.layers[0]}", "alice")).status == 200
    assert not any(one.authorization for one in scene.hub.asked)


@pytest.mark.parametrize("auth", ["bearer"], indirect=True)
async def test_one_clients_limit_is_not_the_others(scene: Scene) -> None:
    """The registry answers alice's GET of a new manifest 429, for a long time: she is told so, and carol, whose account has pulls left, gets it at once."""
    scene.registry.accounts["carol"], scene.registry.rights["carol"] = "third", {"acme/a"}
    scene.registry.add_image("acme/a", "fresh")
    scene.registry.fail("/manifests/fresh", Status(429, {"Retry-After": "600"}), times=3)
    path = "/v2/ghcr.io/acme/a/manifests/fresh"
    limited = await scene.get(path, "alice")
    assert limited.status == 503
    scene.registry.heal()
    before = scene.asked("acme/a")
    assert (await scene.get(path, Authorization=basic("carol", "third"))).status == 200
    assert scene.asked("acme/a") - before == 2, "a check, and the manifest"


@pytest.mark.parametrize("auth", ["bearer"], indirect=True)
async def test_a_redirect_that_one_client_was_given_is_no_ones_leave(scene: Scene) -> None:
    """The registry redirects blobs to a store by URLs that anybody may read. The store gets no client's password or token; and while alice's URL is remembered, bob, who
    asks for the same blob, is still asked about."""
    async with Scripted() as store:
        layer = b"y" * 5000
        fresh = scene.registry.add_image("acme/a", "fresh", layers=[layer])
        store.add_blob(layer)
        scene.registry.redirect_blobs_to = store
        path = f"/v2/ghcr.io/acme/a/blobs/{fresh.layers[0]}"
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/fresh", "alice")).status == 200
        hold = Hold(after=1000)
        store.fail(str(fresh.layers[0]), hold)
        first = asyncio.create_task(scene.get(path, "alice"))
        await hold.reached.wait()
        for user in ("bob", None):
            for method in ("GET", "HEAD"):
                assert (await scene.get(path, user, method, Range="bytes=0-9")).status == 404
        hold.release.set()
        assert (await first).body == layer
        assert not any(one.authorization for one in store.asked)
        assert store.sent[str(fresh.layers[0])] == len(layer)


async def test_who_may_not_pull_has_nothing_fetched_and_nothing_forgotten(scene: Scene) -> None:
    """bob asking for alice's tag costs the registry what finds that out, once a minute, and takes nothing from the cache: her next pull is a hit."""
    before = scene.asked("acme/a")
    for _ in range(5):
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "bob")).status == 404
    # HEAD, and GET since some registries refuse HEAD, each without credentials and with them.
    assert scene.asked("acme/a") - before <= 5
    answer = await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")
    assert answer.status == 200
    assert "hit" in answer.cache


async def test_while_the_registry_is_away_nobody_gets_what_is_cached(scene: Scene) -> None:
    """By default: 503 for all, whoever they are, once their check is a minute old. When it is back, so is the image."""
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
    await scene.registry.stop()
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200, "checked a moment ago"
    scene.later()
    for user in ("alice", "bob", None):
        answer = await scene.get("/v2/ghcr.io/acme/a/manifests/1", user)
        assert answer.status == 503, answer.body
        assert str(scene.private.digest).encode() not in answer.body
    assert (await scene.get("/v2/library/public/manifests/1", "alice")).status == 200
    await scene.registry.start()


async def test_with_client_grace_those_who_were_checked_lately_pull_on(
    start: StartMirror,
    upstream: Scripted,
    registry: Scripted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """alice, who pulled it within the hour, and nobody else; after the hour neither does she."""
    grace = {"client_grace": "1h"}
    scene = await make_scene(start, upstream, registry, "bearer", tmp_path, monkeypatch, registry_settings=grace)
    await scene.registry.stop()
    for path in ("manifests/1", f"blobs/{scene.private.layers[0]}"):
        assert (await scene.get(f"/v2/ghcr.io/acme/a/{path}", "alice")).status == 200
        for user in ("bob", None):
            assert (await scene.get(f"/v2/ghcr.io/acme/a/{path}", user)).status == 503
    scene.now += 3600
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 503
    await scene.registry.start()


async def test_the_token_flow(scene: Scene) -> None:
    """At the login address: ``/v2/`` is challenged, as is what the registry does not allow; a token without a scope, as ``docker login`` wants it, is given for the right
    password only; and what a token was got with cannot be read in it."""
    answer = await scene.get("/v2/", base=scene.login)
    assert answer.status == 401
    path = "/v2/ghcr.io/acme/a/manifests/1"
    answer = await scene.get(path, base=scene.login)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].endswith('scope="repository:ghcr.io/acme/a:pull"')
    assert (await scene.bearer("alice", password="wrong"))[0] == 401
    assert (await scene.bearer("nobody", password="wrong"))[0] == 401
    status, login = await scene.bearer("alice")
    assert status == 200
    assert (await scene.get("/v2/", base=scene.login, Authorization=login)).status == 200
    status, token = await scene.bearer("alice", "repository:ghcr.io/acme/a:pull")
    assert status == 200
    for base in (scene.login, scene.mirror.url):
        assert (await scene.get(path, base=base, Authorization=token)).status == 200
    payload = base64.urlsafe_b64decode(token.split(".")[1] + "===")
    assert ACCOUNTS["alice"].encode() not in payload
    assert base64.b64encode(ACCOUNTS["alice"].encode()).rstrip(b"=") not in payload
    assert json.loads(payload)["sub"] == "", "no user of the mirror"
    status, his = await scene.bearer("bob", "repository:ghcr.io/acme/a:pull")
    assert status == 200
    assert (await scene.get(path, base=scene.login, Authorization=his)).status == 401
    assert (await scene.get(path, Authorization=his)).status == 404
    # One that was asked for something else is not good for this.
    _, narrow = await scene.bearer("alice", "repository:ghcr.io/acme/free:pull")
    assert (await scene.get(path, Authorization=narrow)).status == 403


async def test_a_password_is_in_no_log_and_in_no_file(scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the audit log, which says who asked for what, nor in the log, nor anywhere in the cache directory."""
    with caplog.at_level("DEBUG"):
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "bob")).status == 404
        assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", Authorization=basic("alice", "a wrong password"))).status == 404
        fresh = scene.registry.add_image("acme/a", "fresh")
        assert (await scene.get(f"/v2/ghcr.io/acme/a/blobs/{fresh.layers[0]}", "alice")).status == 200
        await scene.bearer("alice")
    audit = tmp_path / "audit.log"
    await until(lambda: "login:ghcr.io/alice" in audit.read_text())
    await scene.mirror.stop()
    denied = [json.loads(line) for line in audit.read_text().splitlines() if '"denied"' in line]
    assert denied
    assert not any("bob" in str(line) for line in denied), "who was refused may have sent anything for a name"
    secrets = [*ACCOUNTS.values(), "a wrong password"]
    encoded = [form for one in secrets for form in (one.encode(), base64.b64encode(one.encode()).rstrip(b"=")[:-1])]
    encoded += [basic(user).removeprefix("Basic ").encode() for user in ACCOUNTS]
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not any(one in content for one in encoded), file
    assert not any(one.decode() in caplog.text for one in encoded)


async def test_access_tables_hold_beside_the_registry(
    start: StartMirror, upstream: Scripted, registry: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both must allow it: what a table refuses to all is refused to a user of the registry too, before the registry is asked."""
    tables = [{"who": ["10.0.0.0/8"], "repositories": ["ghcr.io/acme/b"]}, {"who": ["anyone"], "repositories": ["**"]}]
    scene = await make_scene(start, upstream, registry, "bearer", tmp_path, monkeypatch, {"access": tables})
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "bob")).status == 404
    tables = [{"who": ["anyone"], "may": [], "repositories": ["ghcr.io/acme/a"]}, {"who": ["anyone"]}]
    closed = await start(
        directory=tmp_path / "other",
        settings={
            "server": {"login_listen": f"127.0.0.1:{free_port()}"},
            "registries": {"ghcr.io": {"endpoints": [registry.url], "credentials": "client"}},
            "access": tables,
        },
    )
    before = len(registry.asked)
    assert (await closed.get("/v2/ghcr.io/acme/a/manifests/1", Authorization=basic("alice"))).status == 404
    assert len(registry.asked) == before
    assert (await closed.get("/v2/ghcr.io/acme/free/manifests/1", Authorization=basic("alice"))).status == 200


async def test_a_password_is_for_the_registry_of_the_host_name(
    start: StartMirror, upstream: Scripted, registry: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two registries, one with a host name of its own: what is sent under that name, as a password or as the token that was got with it, goes to that one and to no
    other, whatever is asked for; and the other way round."""
    async with Scripted() as quay:
        quay.auth, quay.accounts, quay.rights = "bearer", {"alice": "her password at quay"}, {"alice": {"acme/q"}, "": set()}
        quay.add_image("acme/q", "1")
        settings = {"endpoints": [quay.url], "credentials": "client", "client_hosts": ["quay.localhost"]}
        scene = await make_scene(start, upstream, registry, "bearer", tmp_path, monkeypatch, more={"quay.io": settings})
        at_quay, at_ghcr = basic("alice", "her password at quay"), basic("alice")
        ours, theirs = "/v2/ghcr.io/acme/a/manifests/1", "/v2/quay.io/acme/q/manifests/1"
        host = {"Host": "quay.localhost"}
        assert (await scene.get("/v2/", **host)).status == 401
        assert (await scene.get(theirs, Authorization=at_quay, **host)).status == 200
        assert (await scene.get(ours, Authorization=at_quay, **host)).status == 401
        assert (await scene.get(theirs, Authorization=at_ghcr)).status == 404
        answer = await scene.get("/token?service=mirror", Authorization=at_quay, **host)
        token = f"Bearer {json.loads(answer.body)['token']}"
        assert (await scene.get("/v2/", Authorization=token, **host)).status == 200
        assert (await scene.get(ours, Authorization=token)).status == 403
        assert at_quay not in {one.authorization for one in registry.asked}
        assert at_ghcr not in {one.authorization for one in quay.asked}
        assert at_quay in {one.authorization for one in quay.asked}


async def test_passwords_are_taken_over_https_only(
    start: StartMirror, upstream: Scripted, registry: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a proxy passes on counts as it came to the proxy, if it is trusted: by http it is refused, and not sent to the registry."""
    server = {"login_listen": f"127.0.0.1:{free_port()}", "trusted_proxies": ["127.0.0.1"]}
    registry.auth, registry.accounts, registry.rights = "bearer", dict(ACCOUNTS), dict(RIGHTS)
    registry.add_image("acme/a", "1")
    settings = {"server": server, "registries": {"ghcr.io": {"endpoints": [registry.url], "credentials": "client"}}}
    mirror = await start(settings=settings)
    forwarded = {"X_Forwarded_For": "192.0.2.7", "Authorization": basic("alice")}
    for proto in ({}, {"X_Forwarded_Proto": "http"}):
        answer = await mirror.get("/v2/ghcr.io/acme/a/manifests/1", **forwarded, **proto)
        assert answer.status == 403
        assert b"over https only" in answer.body
    assert not any(one.authorization for one in registry.asked)
    answer = await mirror.get("/v2/ghcr.io/acme/a/manifests/1", **forwarded, X_Forwarded_Proto="https")
    assert answer.status == 200


async def test_guesses_are_slowed(scene: Scene) -> None:
    """A password that was refused is not asked about again for a minute, and many wrong ones are answered late: the mirror is no way to guess them."""
    path = "/v2/ghcr.io/acme/a/manifests/1"
    since = len(scene.registry.asked)
    for _ in range(4):
        assert (await scene.get(path, Authorization=basic("alice", "wrong"))).status == 404
    used = [one for one in scene.registry.asked[since:] if one.authorization == basic("alice", "wrong")]
    assert len(used) == 1, "a registry may lock the account after a few"
    answers = await asyncio.gather(*(scene.get(path, Authorization=basic("alice", f"wrong {n}")) for n in range(20)))
    assert {answer.status for answer in answers} == {404, 429}
    assert (await scene.get(path, "alice")).status == 200, "the right one is not locked out"


async def test_a_mirror_of_the_fleet_gets_what_is_for_all(
    start: StartMirror, upstream: Scripted, registry: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It proves that it is one, but no client's password comes with what it asks for: alice's image is not for it, by no name, and its own clients are none of hers."""
    token = tmp_path / "fleet-token"
    token.write_text("the-token-of-the-fleet")
    settings = {"fleet": {"token_file": str(token)}}
    scene = await make_scene(start, upstream, registry, "bearer", tmp_path, monkeypatch, settings)
    assert (await scene.get("/v2/ghcr.io/acme/a/manifests/1", "alice")).status == 200
    asking = {"CDN_Loop": "other; mirror=peer", "Authorization": "Bearer the-token-of-the-fleet"}
    for kind, digest in scene.private_digests().values():
        for name in ("ghcr.io/acme/a", "ghcr.io/acme/free", "library/public"):
            assert (await scene.get(f"/v2/{name}/{kind}/{digest}", **asking)).status == 404, (kind, name)
    assert (await scene.get("/v2/ghcr.io/acme/free/manifests/1", **asking)).status == 200
    assert (await scene.get("/v2/library/public/manifests/1", **asking)).status == 200
