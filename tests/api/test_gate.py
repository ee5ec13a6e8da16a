"""What is let through, and how the rest is answered: every route, every name, every kind of client. The rules themselves: tests/access/test_rules.py."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from mirror.access import users
from mirror.access.tokens import add_token, remove_token
from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import Got, Mirror, StartMirror, read_to_end
from tests.support.ports import free_port
from tests.support.pushes import push_image
from tests.support.scripted import Hold, Image, Pending, Scripted, Status

SECRET_LAYER = b"a secret layer of the private image" * 10
HOSTED_LAYER = b"a secret layer that alice has pushed" * 10
USERS = {"alice": "correct horse", "bob": "battery staple"}


def basic(user: str, password: str | None = None) -> str:
    return "Basic " + base64.b64encode(f"{user}:{USERS.get(user, '') if password is None else password}".encode()).decode()


@pytest.fixture(scope="session")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the fewest rounds of bcrypt."""
    file = tmp_path_factory.mktemp("users") / "users"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "_ROUNDS", 4)
        for user, password in USERS.items():
            users.set_password(file, user, password)
    return file


@dataclass
class Scene:
    """A mirror whose docker.io/private/** only alice may pull, and in whose cache both images are. private/own is hosted, and alice has pushed an image there."""

    mirror: Mirror
    upstream: Scripted
    private: Image
    public: Image
    index: Digest
    login: str
    """The URL of the address that is for logging in."""
    token: str
    """alice's, for private/** alone."""
    start: StartMirror
    users_file: Path
    hosted: Digest
    """The manifest of private/own:1."""

    async def get(self, path: str, user: str | None = None, method: str = "GET", **headers: str) -> Got:
        if user is not None:
            headers["Authorization"] = basic(user)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = URL(f"{self.mirror.url}{path}", encoded=True)
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=sent, allow_redirects=False) as answer,
        ):
            return await read_to_end(answer)

    def private_digests(self) -> dict[str, tuple[str, Digest]]:
        """What somebody could ask for by digest, with its kind."""
        return {
            "index": ("manifests", self.index),
            "manifest": ("manifests", self.private.digest),
            "config": ("blobs", self.private.config),
            "layer": ("blobs", self.private.layers[0]),
        }

    def hosted_digests(self) -> dict[str, tuple[str, Digest]]:
        """The same of the hosted image."""
        return {"manifest": ("manifests", self.hosted), "layer": ("blobs", Digest.of(HOSTED_LAYER))}


@pytest.fixture
async def scene(start: StartMirror, upstream: Scripted, users_file: Path, tmp_path: Path) -> Scene:
    upstream.keeps_apart = True
    private = upstream.add_image("private/app", "1", layers=[SECRET_LAYER])
    index, _ = upstream.add_index("private/app", "latest", [private])
    public = upstream.add_image("library/public", "1", layers=[b"for all" * 50])
    token = add_token(tmp_path / "cache" / "access" / "tokens", "laptop", "alice", ("pull:private/**",), None)
    port = free_port()
    mirror = await start(
        settings={
            "server": {
                "users_file": str(users_file),
                "login_listen": f"127.0.0.1:{port}",
                "login_hosts": ["login.test"],
                "audit_log": str(tmp_path / "audit.log"),
            },
            "registries": {"ghcr.io": {"endpoints": [upstream.url]}},
            "hosted": {"repositories": ["private/own"]},
            "access": [
                {"who": ["alice"], "may": ["pull", "push"], "repositories": ["**"]},
                {"who": ["anyone"], "may": [], "repositories": ["**/private/**"]},
                {"who": ["anyone"]},
            ],
        }
    )
    async with aiohttp.ClientSession(mirror.url, headers={"Authorization": basic("alice")}) as alice:
        hosted, _ = await push_image(alice, "private/own", "1", HOSTED_LAYER)
    scene = Scene(mirror, upstream, private, public, index, f"http://127.0.0.1:{port}", token, start, users_file, hosted)
    for path in (
        "/v2/private/app/manifests/latest",
        "/v2/private/app/manifests/1",
        *(f"/v2/private/app/{kind}/{digest}" for kind, digest in scene.private_digests().values()),
        "/v2/library/public/manifests/1",
        f"/v2/library/public/blobs/{public.layers[0]}",
        f"/v2/library/public/blobs/{public.config}",
    ):
        assert (await scene.get(path, "alice")).status == 200, path
    for digest in (*private.layers, private.config, *public.layers, public.config):
        await mirror.until_cached(digest)
    return scene


async def test_whoever_may_gets_it_and_nobody_else(scene: Scene) -> None:
    """alice pulls the private image, bob and strangers get 404 for it as for a name that does not exist; all get the public one."""
    for path in ("/v2/private/app/manifests/1", "/v2/private/app/tags/list", "/v2/private/nothing/manifests/1"):
        for user in (None, "bob"):
            answer = await scene.get(path, user)
            assert answer.status == 404
            assert json.loads(answer.body)["errors"][0]["code"] == "NAME_UNKNOWN"
            assert "WWW-Authenticate" not in answer.headers
    assert (await scene.get("/v2/private/app/manifests/1", "alice")).status == 200
    for user in (None, "bob", "alice"):
        assert (await scene.get("/v2/library/public/manifests/1", user)).status == 200
        assert (await scene.get(f"/v2/library/public/blobs/{scene.public.layers[0]}", user)).status == 200


NAMES = {
    "its own": "/v2/private/app/{what}",
    "with ns": "/v2/private/app/{what}?ns=docker.io",
    "of an alias": "/v2/private/app/{what}?ns=index.docker.io",
    "in the path": "/v2/docker.io/private/app/{what}",
    "before v2": "/docker.io/v2/private/app/{what}",
    "with slashes": "//v2/private/app/{what}",
    "encoded": "/v2/%70rivate/app/{what}",
    "of another registry": "/v2/ghcr.io/private/app/{what}",
    "of another registry by ns": "/v2/private/app/{what}?ns=ghcr.io",
    "of a public image": "/v2/library/public/{what}",
    "of a public image, in short": "/v2/public/{what}",
    "of a public image of another registry": "/v2/library/public/{what}?ns=ghcr.io",
    "of an image that there is not": "/v2/library/nothing/{what}",
    "doubled": "/v2/docker.io/docker.io/private/app/{what}",
    "of Docker's first API": "/v2/docker.io/v1/private/app/{what}",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_name_leads_to_private_content(scene: Scene, name: str, method: str) -> None:
    """For each manifest, configuration and layer of the private image, and of the one that was pushed: whatever name somebody asks by who may not pull it, no byte
    and no size comes."""
    own = name.replace("private/app", "private/own").replace("%70rivate/app", "%70rivate/own")
    cached = [(name, *what) for what in scene.private_digests().values()]
    hosted = [(one, *what) for one in dict.fromkeys((name, own)) for what in scene.hosted_digests().values()]
    for by, kind, digest in cached + hosted:
        for user in (None, "bob"):
            for headers in ({}, {"Range": "bytes=0-9"}, {"If_None_Match": f'"{digest}"'}):
                answer = await scene.get(by.format(what=f"{kind}/{digest}"), user, method, **headers)
                assert answer.status == 404, (kind, user, headers, answer.headers)
                assert "Docker-Content-Digest" not in answer.headers
                assert b"a secret layer" not in answer.body
    assert scene.upstream.sent[str(scene.private.layers[0])] == len(SECRET_LAYER)


OTHERS = {
    "tags": "/v2/private/app/tags/list",
    "tags by ns": "/v2/private/app/tags/list?ns=docker.io",
    "referrers": "/v2/private/app/referrers/{manifest}",
    "export": "/export/docker.io/private/app:1.tar",
    "export by digest": "/export/docker.io/private/app@{manifest}.tar",
    "export by digest of another": "/export/docker.io/library/public@{manifest}.tar",
    "export of several": "/export/lab.tar?images=library/public:1,private/app:1",
    "export of several, by digest": "/export/lab.tar?images=library/public:1,library/public@{manifest}",
    "catalog": "/v2/_catalog",
    "catalog of a registry": "/v2/docker.io/_catalog",
    "search": "/v1/search?q=private",
    "search of all": "/v1/search?q=app",
    "overview": "/",
    "images": "/images",
    "image": "/image/docker.io/private/app:1",
    "repository": "/repository/docker.io/private/app",
    "repository's tags": "/repository/docker.io/private/app?view=tags",
    "dashboard's search": "/search?q=app",
    "class": "/class",
    "events": "/events",
    "metrics": "/metrics",
    "readiness": "/readyz",
    "login page": "/login",
    "setup page": "/setup",
    "guards": "/guards",
    "account": "/account",
    "settings": "/settings",
    "import": "/import",
    "export of all": "/export/all.tar?images=*",
    "fleet": "/fleet",
    "nothing": "/nothing",
}


@pytest.mark.parametrize("path", OTHERS.values(), ids=list(OTHERS))
async def test_nothing_names_what_is_private(scene: Scene, path: str) -> None:
    """No list, page, bundle, search or figure names the private image, or the one that was pushed, to somebody who may not pull it. Whoever may is told, where there is
    something to tell."""
    never = [str(digest) for digest in (scene.private.layers[0], scene.private.config, Digest.of(HOSTED_LAYER))]
    urls = path.format(manifest=scene.private.digest), path.replace("private/app", "private/own").format(manifest=scene.hosted)
    for url in dict.fromkeys(urls):
        for user in (None, "bob"):
            for accept in ("*/*", "text/html"):
                answer = await scene.get(url, user, Accept=accept)
                assert answer.status in (200, 303, 401, 404), answer.status
                for hidden in ("private/app", "private/own", *never, "a secret layer"):
                    # What was asked for may be repeated.
                    assert hidden.encode() not in answer.body or hidden in url or answer.status == 404
                if answer.status == 404:
                    assert not any(digest.encode() in answer.body for digest in never)


@pytest.mark.parametrize(
    ("path", "told"), [(OTHERS[name], name) for name in ("catalog", "search", "export", "images", "tags", "export of several")]
)
async def test_whoever_may_is_told(scene: Scene, path: str, told: str) -> None:
    """The same lists and bundles name it to alice: what is hidden from others is not lost."""
    answer = await scene.get(path.format(manifest=scene.private.digest), "alice", Accept="text/html")
    assert answer.status == 200, (told, answer.body)
    assert (b"private/app" in answer.body) or told == "tags"
    if told in ("catalog", "images"):
        assert b"private/own" in answer.body


async def test_a_bundle_of_everything_has_what_one_may_have(scene: Scene) -> None:
    """``?images=*`` leaves out what is not for whoever asks, and gives alice all of it, at the same time."""
    whole = await scene.get("/export/all.tar?images=*", "alice")
    part = await scene.get("/export/all.tar?images=*", "bob")
    assert SECRET_LAYER in whole.body
    assert HOSTED_LAYER in whole.body
    assert b"a secret layer" not in part.body
    assert b"private/" not in part.body
    assert b"for all" * 50 in part.body


async def test_a_layer_that_both_have_is_for_all(scene: Scene) -> None:
    """A blob of the private image that a public one names too is served by the public one's name, and upstream is not asked whether it has it."""
    shared = scene.upstream.add_image("library/shared", "1", layers=[SECRET_LAYER])
    assert (await scene.get(f"/v2/library/shared/blobs/{shared.layers[0]}", "bob")).status == 200
    asked = scene.upstream.count("HEAD", f"/blobs/{shared.layers[0]}")
    assert asked == 1, "no manifest of it is cached yet"
    assert (await scene.get("/v2/library/shared/manifests/1", "bob")).status == 200
    answer = await scene.get(f"/v2/library/public/blobs/{shared.layers[0]}", "bob")
    assert answer.status == 200, "bob may have it by its own repository's name, so by any"
    assert scene.upstream.count("HEAD", f"/blobs/{shared.layers[0]}") == 1


async def test_an_image_that_another_registry_has_too_is_asked_for_once(scene: Scene) -> None:
    """A public repository with the very same manifest: upstream says that it has it, and once each of its blobs, which the private one brought."""
    scene.upstream.manifests["library/twin", "1"] = scene.upstream.manifests["private/app", "1"]
    scene.upstream.manifests["library/twin", str(scene.private.digest)] = scene.upstream.manifests["private/app", "1"]
    assert (await scene.get("/v2/library/twin/manifests/1", "bob")).status == 200
    assert (await scene.get(f"/v2/library/twin/manifests/{scene.private.digest}", "bob")).status == 200
    for digest in (scene.private.config, scene.private.layers[0]):
        for _ in range(3):
            assert (await scene.get(f"/v2/library/twin/blobs/{digest}", "bob")).status == 200
        assert scene.upstream.count("HEAD", f"/library/twin/blobs/{digest}") == 1
    # The index is not the twin's.
    assert (await scene.get(f"/v2/library/twin/manifests/{scene.index}", "bob")).status == 404


NAMING = {
    "an ordinary layer": {},
    "a foreign layer of Docker": {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
    "a layer that must not be distributed": {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"},
    "a layer with URLs": {"urls": ["https://example.com/layer"]},
}


def naming(digest: Digest, **fields: Any) -> bytes:
    """A manifest that names a layer which its repository need not have."""
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(digest), "size": len(SECRET_LAYER), **fields}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}).encode()


def publish(upstream: Scripted, path: str, body: bytes, media_type: str = OCI_MANIFEST) -> Digest:
    """Puts a manifest into a repository of a registry that checks nothing."""
    digest = Digest.of(body)
    upstream.hollow.add(path)
    upstream.manifests[path, "1"] = upstream.manifests[path, str(digest)] = (media_type, body)
    return digest


@pytest.mark.parametrize("fields", NAMING.values(), ids=list(NAMING))
@pytest.mark.parametrize("query", ["", "?ns=ghcr.io"], ids=["of the same registry", "of another registry"])
async def test_a_public_image_opens_nothing_that_it_only_names(scene: Scene, fields: dict[str, Any], query: str) -> None:
    """Whoever controls a public image can have it name a private layer, configuration or manifest, or one that was pushed. Nobody gets that by it, neither by pull,
    range nor bundle."""
    for kind, digest in (*scene.private_digests().values(), *scene.hosted_digests().values()):
        body = naming(digest, **fields)
        if kind == "manifests":
            entry = {
                "mediaType": OCI_MANIFEST,
                "digest": str(digest),
                "size": 100,
                **({"urls": fields["urls"]} if "urls" in fields else {}),
            }
            body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
        publish(scene.upstream, "evil/image", body, OCI_INDEX if kind == "manifests" else OCI_MANIFEST)
        for user in (None, "bob"):
            assert (await scene.get(f"/v2/evil/image/manifests/1{query}", user)).status == 200
            for method in ("GET", "HEAD"):
                for headers in ({}, {"Range": "bytes=0-9"}):
                    answer = await scene.get(f"/v2/evil/image/{kind}/{digest}{query}", user, method, **headers)
                    assert answer.status == 404, (kind, method, answer.body)
            name = "ghcr.io/evil/image" if query else "evil/image"
            for path in (
                f"/export/{name}:1.tar",
                f"/export/all.tar?images={name}:1,library/public:1",
                "/export/all.tar?images=*",
            ):
                answer = await scene.get(path, user)
                assert b"a secret layer" not in answer.body, path
                assert scene.private.digest.hex.encode() not in answer.body or kind == "manifests", path


@pytest.mark.parametrize(
    ("query", "fields", "opens"),
    [
        ("", {}, True),
        ("", NAMING["a layer with URLs"], False),
        ("", NAMING["a foreign layer of Docker"], False),
        ("?ns=ghcr.io", {}, False),
    ],
)
async def test_what_counts_while_upstream_is_away(scene: Scene, query: str, fields: dict[str, Any], opens: bool) -> None:
    """A layer that a private image brought too is there for the clients of another one whose manifest the same registry gave, which checks what manifests name: a
    laboratory that goes offline keeps what it has. A layer that it says is elsewhere is not, nor one of another registry."""
    publish(scene.upstream, "library/debian", naming(scene.private.layers[0], **fields))
    assert (await scene.get(f"/v2/library/debian/manifests/1{query}", "bob")).status == 200
    await scene.upstream.stop()
    answer = await scene.get(f"/v2/library/debian/blobs/{scene.private.layers[0]}{query}", "bob")
    assert (answer.body == SECRET_LAYER) is opens
    assert (answer.status == 200) is opens


async def test_what_comes_meanwhile_is_not_given_to_others(scene: Scene) -> None:
    """A layer that a public image names is asked of its registry while it is not cached. Neither from the cache, nor from the download of those who may have it, does
    anybody get it who came by the public image, whenever it comes."""
    layer = os.urandom(300_000)
    other = scene.upstream.add_image("private/late", "1", layers=[layer])
    digest = other.layers[0]
    publish(scene.upstream, "evil/image", naming(digest))
    assert (await scene.get("/v2/evil/image/manifests/1", "bob")).status == 200
    assert (await scene.get("/v2/private/late/manifests/1", "alice")).status == 200
    hold = Hold(after=100_000)
    scene.upstream.fail(str(digest), hold)
    alice = asyncio.create_task(scene.get(f"/v2/private/late/blobs/{digest}", "alice"))
    await hold.reached.wait()
    slow = Pending()
    scene.upstream.fail(f"evil/image/blobs/{digest}", slow, method="HEAD")
    bob = asyncio.create_task(scene.get(f"/v2/evil/image/blobs/{digest}", "bob"))
    await slow.reached.wait()
    hold.release.set()
    assert (await alice).body == layer
    await scene.mirror.until_cached(digest)
    slow.release.set()
    assert (await bob).status == 404
    assert (await scene.get(f"/v2/evil/image/blobs/{digest}", "bob")).status == 404


async def test_a_pull_asks_upstream_no_more_than_without_rules(scene: Scene, start: StartMirror, tmp_path: Path) -> None:
    """What a client asks for in a pull is known from the manifests that came before, so no question is added."""
    image = scene.upstream.add_image("library/fresh", "1")
    open_mirror = await start(directory=tmp_path / "other")
    counts = []
    for mirror in (scene.mirror, open_mirror):
        before = len(scene.upstream.asked)
        assert (await mirror.head("/v2/library/fresh/manifests/1")).status == 200
        assert (await mirror.get(f"/v2/library/fresh/manifests/{image.digest}")).status == 200
        for digest in (image.config, *image.layers):
            assert (await mirror.get(f"/v2/library/fresh/blobs/{digest}")).status == 200
        counts.append(len(scene.upstream.asked) - before)
    assert counts[0] == counts[1]


async def test_where_clients_are_challenged_and_where_not(scene: Scene) -> None:
    """At the login address, and under a login host, ``/v2/`` and what needs a user are answered 401 with a challenge; at the first address nothing is, whatever is
    sent."""
    wrong = {"Authorization": basic("alice", "wrong")}
    for path in ("/v2/", "/v2/private/app/manifests/1", "/v2/library/public/manifests/1", "/v2/nothing"):
        for headers in (
            {},
            wrong,
            {"Authorization": "Bearer nonsense"},
            {"Authorization": "Digest x"},
            {"Authorization": "Basic %%%"},
        ):
            answer = await scene.get(path, **headers)
            assert answer.status in (200, 403, 404, 429)
            assert "WWW-Authenticate" not in answer.headers
    assert (await scene.get("/v2/")).status == 200
    refused = await scene.get("/v2/", **wrong)
    assert refused.status in (403, 429)
    async with aiohttp.ClientSession() as session:
        for url, host in ((scene.login, None), (scene.mirror.url, "login.test"), (scene.mirror.url, "login.test:5000")):
            headers = {} if host is None else {"Host": host}
            shown = host or scene.login.removeprefix("http://")
            async with session.get(f"{url}/v2/", headers=headers) as got:
                assert got.status == 401
                assert got.headers["WWW-Authenticate"] == f'Bearer realm="http://{shown}/token",service="mirror"'
            async with session.get(f"{url}/v2/private/app/manifests/1", headers=headers) as got:
                assert got.status == 401
                assert got.headers["WWW-Authenticate"].endswith('scope="repository:private/app:pull"')
            async with session.get(f"{url}/v2/library/public/manifests/1", headers=headers) as got:
                assert got.status == 200
            async with session.get(
                f"{url}/v2/private/app/manifests/1", headers={**headers, "Authorization": basic("bob")}
            ) as got:
                assert got.status == 404, "a user is not asked again"


async def bearer(url: str, scope: str, authorization: str | None = None) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        headers = {} if authorization is None else {"Authorization": authorization}
        async with session.get(f"{url}/token?service=mirror&scope={scope}", headers=headers) as answer:
            document = await answer.json()
            return answer.status, f"Bearer {document.get('token')}"


async def test_the_token_flow(scene: Scene) -> None:
    """A token for what it was asked for, as whoever has logged in; for nobody it is good for what anyone may; a wrong password gets none."""
    status, token = await bearer(scene.login, "repository:private/app:pull", basic("alice"))
    assert status == 200
    assert (await scene.get("/v2/private/app/manifests/1", Authorization=token)).status == 200
    assert (await scene.get("/v2/", Authorization=token)).status == 200
    status, other = await bearer(scene.login, "repository:library/public:pull", basic("alice"))
    assert (await scene.get("/v2/private/app/manifests/1", Authorization=other)).status == 403
    status, nobody = await bearer(scene.login, "repository:private/app:pull")
    assert status == 200
    assert (await scene.get("/v2/private/app/manifests/1", Authorization=nobody)).status == 404
    assert (await scene.get("/v2/library/public/manifests/1", Authorization=nobody)).status == 200
    assert (await bearer(scene.login, "repository:private/app:pull", basic("alice", "wrong")))[0] == 401
    assert (await bearer(scene.mirror.url, "repository:private/app:pull", basic("alice", "wrong")))[0] == 403
    async with aiohttp.ClientSession() as session:
        form = {"grant_type": "password", "username": "alice", "password": USERS["alice"], "scope": "repository:private/app:pull"}
        async with session.post(f"{scene.login}/token", data=form) as answer:
            posted = (await answer.json())["access_token"]
        async with session.post(f"{scene.login}/token", data={**form, "grant_type": "refresh_token"}) as answer:
            assert answer.status == 400
    assert (await scene.get("/v2/private/app/manifests/1", Authorization=f"Bearer {posted}")).status == 200
    head, body, signature = posted.split(".")
    forged = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    for bad in (f"{head}.{body}.{signature[:-4]}AAAA", f"{forged}.{body}.", f"{forged}.{body}.{signature}"):
        assert (await scene.get("/v2/private/app/manifests/1", Authorization=f"Bearer {bad}")).status in (403, 429)


async def test_the_secret_path(scene: Scene) -> None:
    """A token in the path stands for its user, in all forms of URL, is limited as it says, and is in no log, error or page link."""
    token = scene.token
    for path in (
        "/v2/private/app/manifests/1",
        "/docker.io/v2/private/app/manifests/1",
        "/v2/private/app/manifests/1?ns=docker.io",
    ):
        assert (await scene.get(f"/t/{token}{path}")).status == 200, path
        assert (await scene.get(f"//t/{token}{path}")).status == 200, path
        assert (await scene.get(f"/t/{token[:-1]}x{path}")).status in (403, 429)
    assert (await scene.get(f"/t/{token}/v2/library/public/manifests/1")).status == 404, "the token is for private/** alone"
    assert (await scene.get(f"/t/{token}/v2/")).status == 200
    assert (await scene.get(f"/t/{token}/")).status == 404
    assert (await scene.get(f"/t/{token}/images")).status == 404
    assert (await scene.get("/v2/private/app/manifests/1", Authorization=basic("whoever", token))).status == 200
    assert (await scene.get("/v2/private/app/manifests/1", Authorization=f"Bearer {token}")).status == 200
    assert token not in (await scene.get(f"/t/{token}/v2/x%ff")).body.decode()


async def test_what_changes_counts_within_a_second(scene: Scene, users_file: Path, tmp_path: Path) -> None:
    """Another password, a token that is added or removed, and a user who is removed: without a restart, and also where the answer was remembered by its request."""
    file = tmp_path / "own-users"
    file.write_text(users_file.read_text())
    mirror = await scene.start(
        directory=tmp_path / "second",
        settings={"server": {"users_file": str(file)}, "access": [{"who": ["@users", "token:robot"]}]},
    )
    path = "/v2/library/public/manifests/1"

    async def until_status(status: int, **headers: str) -> None:
        while (await mirror.get(path, **headers)).status != status:
            await asyncio.sleep(0.05)

    alice, bob = basic("alice"), basic("bob")
    for _ in range(5):
        assert (await mirror.get(path, Authorization=alice)).status == 200
        assert (await mirror.get(path, Authorization=bob)).status == 200
    assert (await mirror.get(path)).status == 404
    users.remove_user(file, "bob")
    await until_status(403, Authorization=bob)
    assert (await mirror.get(path, Authorization=alice)).status == 200
    robot = add_token(mirror.directory / "access" / "tokens", "robot", None, (), None)
    await until_status(200, Authorization=f"Bearer {robot}")
    for _ in range(5):
        assert (await mirror.get(path, Authorization=f"Bearer {robot}")).status == 200
    remove_token(mirror.directory / "access" / "tokens", "robot")
    await until_status(403, Authorization=f"Bearer {robot}")


async def test_a_remembered_answer_is_for_the_one_who_may(scene: Scene) -> None:
    """Manifests that are answered from the bytes of a request are given to equal requests of the same client only, with the same login."""
    path = "/v2/private/app/manifests/1"
    for _ in range(4):
        assert (await scene.mirror.get(path, Authorization=basic("alice"))).status == 200
        assert (await scene.mirror.get(path, Authorization=basic("bob"))).status == 404
        assert (await scene.mirror.get(path)).status == 404


@pytest.mark.parametrize(
    ("forwarded", "allowed"),
    [
        ("192.0.2.7", True),
        ("203.0.113.1", False),
        ("192.0.2.7, 203.0.113.1", False),
        ("203.0.113.1, 192.0.2.7", True),
        ("192.0.2.7, 127.0.0.9", True),
        ("192.0.2.7:1234", True),
        ("[2001:db8::7]:80", True),
        ("nonsense", False),
        ("192.0.2.7, nonsense", False),
        ("", False),
    ],
)
async def test_addresses_behind_a_trusted_proxy(scene: Scene, tmp_path: Path, forwarded: str, allowed: bool) -> None:
    """The last address that no trusted proxy has is the client's; what a client writes before it counts for nothing. Without the setting nothing of it counts."""
    access = [{"who": ["192.0.2.0/24", "2001:db8::/32"]}]
    trusting = await scene.start(
        directory=tmp_path / "second", settings={"server": {"trusted_proxies": ["127.0.0.0/8"]}, "access": access}
    )
    wary = await scene.start(directory=tmp_path / "third", settings={"access": access})
    for _ in range(3):
        answer = await trusting.get("/v2/library/public/manifests/1", X_Forwarded_For=forwarded)
        assert answer.status == (200 if allowed else 404)
        assert (await wary.get("/v2/library/public/manifests/1", X_Forwarded_For=forwarded)).status == 404


async def test_limits(scene: Scene, tmp_path: Path) -> None:
    """Requests, bytes and downloads at once, each for every user: beyond them 429 with Retry-After, for that user alone, also where answers are remembered."""
    mirror = await scene.start(
        directory=tmp_path / "second",
        settings={
            "server": {"users_file": str(scene.users_file)},
            "access": [{"who": ["anyone"], "requests_per_minute": 6}],
        },
    )
    path = "/v2/library/public/manifests/1"
    answers = [await mirror.get(path, Authorization=basic("alice")) for _ in range(9)]
    assert [one.status for one in answers] == [200] * 6 + [429] * 3
    assert all(1 <= int(one.headers["Retry-After"]) <= 60 for one in answers[6:])
    assert json.loads(answers[6].body)["errors"][0]["code"] == "TOOMANYREQUESTS"
    assert (await mirror.get(path, Authorization=basic("bob"))).status == 200
    assert (await mirror.get(path)).status == 200
    bytes_mirror = await scene.start(
        directory=tmp_path / "third", settings={"access": [{"who": ["anyone"], "bytes_per_minute": "1KB"}]}
    )
    blob = f"/v2/library/public/blobs/{scene.upstream.add_blob(b'x' * 3000)}"
    scene.upstream.keeps_apart = False
    assert (await bytes_mirror.get(blob)).status == 200
    assert (await bytes_mirror.get(blob)).status == 429
    downloads = await scene.start(
        directory=tmp_path / "fourth", settings={"access": [{"who": ["anyone"], "downloads_at_once": 1}]}
    )
    big = scene.upstream.add_blob(b"y" * 100_000)
    hold = Hold(after=1000)
    scene.upstream.fail(str(big), hold)
    first = asyncio.create_task(downloads.get(f"/v2/library/public/blobs/{big}"))
    await hold.reached.wait()
    assert (await downloads.get(f"/v2/library/public/blobs/{big}")).status == 429
    hold.release.set()
    assert (await first).status == 200
    assert (await downloads.get(f"/v2/library/public/blobs/{big}")).status == 200


async def test_errors_of_upstream_that_name_images_are_not_shown(scene: Scene) -> None:
    """/readyz is for everybody: an endpoint that failed for a private image is reported without the request."""
    scene.upstream.fail("/v2/private/app", Status(500), times=20, method="*")
    assert (await scene.get("/v2/private/app/manifests/new", "alice")).status == 503
    report = await scene.get("/readyz")
    assert b"degraded" in report.body
    assert b"private/app" not in report.body


async def test_addresses_of_one_network_share_a_limit(scene: Scene, tmp_path: Path) -> None:
    """All of an IPv6 /64, which one machine may use; IPv4 addresses have a limit each."""
    mirror = await scene.start(
        directory=tmp_path / "second",
        settings={"server": {"trusted_proxies": ["127.0.0.1"]}, "access": [{"who": ["anyone"], "requests_per_minute": 2}]},
    )

    async def status(address: str) -> int:
        return (await mirror.get("/v2/library/public/manifests/1", X_Forwarded_For=address)).status

    same = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2::3"]
    assert [await status(address) for address in same] == [200, 200, 429]
    assert await status("2001:db8:1:3::1") == 200
    assert [await status(f"192.0.2.{number}") for number in range(1, 5)] == [200] * 4
