"""Pushes by the rules of access, and what was pushed for some: nobody else gets it by any name, mount or reference."""

from __future__ import annotations

import contextlib
import json
import ssl
from pathlib import Path

import aiohttp
import pytest

from mirror.access.tokens import add_token
from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.api.test_gate import basic, users_file  # noqa: F401  a fixture
from tests.support.certificates import Authority
from tests.support.mirrors import Got, Mirror, StartMirror, read_to_end
from tests.support.pushes import push_image, say
from tests.support.scripted import Scripted

LAYER = b"a layer that alice pushed for herself" * 20
CONFIG = b'{"architecture": "amd64", "os": "linux"}'


def manifest(*layers: bytes) -> bytes:
    described = [{"mediaType": "layer", "digest": str(Digest.of(layer)), "size": len(layer)} for layer in layers]
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(CONFIG)), "size": len(CONFIG)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": described}).encode()


@pytest.fixture
async def mirror(start: StartMirror, upstream: Scripted, users_file: Path) -> Mirror:  # noqa: F811
    upstream.keeps_apart = True
    upstream.add_image("library/public", "1", layers=[b"for all" * 50])
    return await start(
        settings={
            "server": {"users_file": str(users_file)},
            "registries": {"ghcr.io": {"endpoints": [upstream.url]}},
            "hosted": {"repositories": ["alice/**", "bob/**"]},
            "access": [
                {"who": ["alice"], "may": ["pull", "push", "delete"], "repositories": ["alice/**"]},
                {"who": ["bob"], "may": ["pull", "push"], "repositories": ["bob/**"]},
                {"who": ["anyone"], "may": [], "repositories": ["alice/**", "bob/**"]},
                {"who": ["anyone"]},
            ],
        }
    )


async def ask(mirror: Mirror, method: str, path: str, user: str | None, body: bytes = b"", **headers: str) -> Got:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if user is not None:
        sent["Authorization"] = basic(user)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{mirror.url}{path}", data=body, headers=sent) as answer,
    ):
        return await read_to_end(answer)


async def push(mirror: Mirror, user: str, repository: str, *layers: bytes) -> Digest:
    for blob in (CONFIG, *layers):
        done = await ask(mirror, "POST", f"/v2/{repository}/blobs/uploads/?digest={Digest.of(blob)}", user, blob)
        assert done.status == 201, done.body
    body = manifest(*layers)
    done = await ask(mirror, "PUT", f"/v2/{repository}/manifests/1", user, body, Content_Type=OCI_MANIFEST)
    assert done.status == 201, done.body
    return Digest.of(body)


CLIENTS = {
    "alice": "change",
    "alice's token for everything": "change",
    "alice's token as a password": "change",
    "a bearer token for alice's password": "change",
    "alice's token in the path": "change",
    "the laptop's certificate": "change",
    "alice's token for pushing": "push",
    "alice's token for pulling": "pull",
    "alice's token for another repository": "",
    "bob": "",
    "another certificate": "",
    "nobody": "",
}
"""Who sends a request, and what they may do with alice/**."""
ROUTES = {
    ("POST", "/v2/alice/app/blobs/uploads/"): ("push", 202),
    ("POST", "/v2/alice/app/blobs/uploads/?mount={layer}&from=alice/app"): ("push", 201),
    ("PATCH", "/v2/alice/app/blobs/uploads/x"): ("push", 404),
    ("PUT", "/v2/alice/app/blobs/uploads/x?digest={layer}"): ("push", 404),
    ("GET", "/v2/alice/app/blobs/uploads/x"): ("push", 404),
    ("DELETE", "/v2/alice/app/blobs/uploads/x"): ("push", 404),
    ("PUT", "/v2/alice/app/manifests/2"): ("push", 400),
    ("DELETE", "/v2/alice/app/manifests/2"): ("delete", 404),
    ("DELETE", "/v2/alice/app/blobs/{layer}"): ("delete", 409),  # its manifest is there
    ("GET", "/v2/alice/app/manifests/1"): ("pull", 200),
    ("GET", "/v2/alice/app/tags/list"): ("pull", 200),
}
"""What each route wants, and what it answers to whoever has it."""


async def test_who_may_change_what(start: StartMirror, upstream: Scripted, users_file: Path, tmp_path: Path) -> None:  # noqa: F811
    """Each route by each kind of client: what may not be is 404 where pulling is not allowed either, and 403 where it is; never a challenge."""
    upstream.add_image("library/public", "1", layers=[b"for all" * 50])
    authority = Authority(tmp_path / "tls")
    folder = tmp_path / "cache" / "access" / "tokens"
    tokens = {
        name: add_token(folder, name, "alice", scopes, None)
        for name, scopes in (("all", ()), ("push", ("pull", "push")), ("pull", ("pull",)), ("other", ("pull:alice/other",)))
    }
    mirror = await start(
        settings={
            "server": {
                "users_file": str(users_file),
                "tls_certificate": str(authority.certificate),
                "tls_key": str(authority.key),
                "tls_client_ca": str(authority.ca),
            },
            "hosted": {"repositories": ["alice/**", "bob/**"]},
            "access": [
                {"who": ["alice", "cert:laptop"], "may": ["pull", "push", "delete"], "repositories": ["alice/**"]},
                {"who": ["bob"], "may": ["pull", "push"], "repositories": ["bob/**"]},
                {"who": ["anyone"], "may": [], "repositories": ["alice/**", "bob/**"]},
                {"who": ["anyone"]},
            ],
        }
    )
    paths = dict.fromkeys(CLIENTS, "") | {"alice's token in the path": f"/t/{tokens['all']}"}
    headers = {
        "alice": basic("alice"),
        "alice's token for everything": f"Bearer {tokens['all']}",
        "alice's token as a password": basic("anything", tokens["all"]),
        "alice's token for pushing": f"Bearer {tokens['push']}",
        "alice's token for pulling": f"Bearer {tokens['pull']}",
        "alice's token for another repository": f"Bearer {tokens['other']}",
        "bob": basic("bob"),
    }
    certificates = {"the laptop's certificate": "laptop", "another certificate": "other"}
    async with contextlib.AsyncExitStack() as stack:
        sessions = {}
        for name in CLIENTS:
            context = ssl.create_default_context(cafile=authority.ca)
            if name in certificates:
                context.load_cert_chain(*authority.issue_to(certificates[name]))
            session = aiohttp.ClientSession(mirror.url, connector=aiohttp.TCPConnector(ssl=context))
            sessions[name] = await stack.enter_async_context(session)
        sessions["alice"].headers["Authorization"] = basic("alice")
        await push_image(sessions["alice"], "alice/app", "1", LAYER)
        del sessions["alice"].headers["Authorization"]
        asked = await say(
            sessions["alice"], "GET", "/token?scope=repository:alice/app:pull,push,delete", Authorization=basic("alice")
        )
        headers["a bearer token for alice's password"] = f"Bearer {json.loads(asked.body)['token']}"
        for name, may in CLIENTS.items():
            has = {"change": ("pull", "push", "delete"), "push": ("pull", "push"), "pull": ("pull",)}.get(may, ())
            sent = {"Authorization": headers[name]} if name in headers else {}
            for (method, path), (wanted, status) in ROUTES.items():
                answer = await say(sessions[name], method, paths[name] + path.format(layer=Digest.of(LAYER)), **sent)
                assert "WWW-Authenticate" not in answer.headers
                assert answer.status == (status if wanted in has else 403 if has else 404), (name, method, path, answer.body)
                if not has:
                    assert answer.code == "NAME_UNKNOWN", (name, method, path)
            # Where everybody may pull, and push nobody.
            answer = await say(sessions[name], "POST", f"{paths[name]}/v2/library/public/blobs/uploads/", **sent)
            assert answer.status == (404 if "another repository" in name else 403), name


@pytest.mark.parametrize("user", ["bob", None])
async def test_what_was_pushed_for_some_is_had_by_nobody_else(mirror: Mirror, user: str | None) -> None:
    """By its own name or any other, as a manifest or a blob, by a mount from where it is or from anywhere, and by a manifest of one's own that names it."""
    digest, layer = await push(mirror, "alice", "alice/app", LAYER), Digest.of(LAYER)
    await push(mirror, "bob", "bob/app", b"his own")
    assert (await mirror.get("/v2/library/public/manifests/1")).status == 200
    for name in ("alice/app", "bob/app", "library/public", "public", "docker.io/alice/app", "ghcr.io/alice/app", "alice/other"):
        for what in ("manifests/1", f"manifests/{digest}", f"blobs/{layer}", "tags/list", f"referrers/{digest}"):
            for method in ("GET", "HEAD"):
                answer = await ask(mirror, method, f"/v2/{name}/{what}", user)
                assert LAYER[:20] not in answer.body
                assert str(digest).encode() not in answer.body or answer.status == 404
                if str(digest) in what or str(layer) in what:
                    assert answer.status == 404 or what.startswith("referrers"), (name, what)
    for path in (
        "/v2/_catalog",
        "/v1/search?q=app",
        "/images",
        "/",
        "/export/all.tar?images=*",
        "/export/docker.io/alice/app:1.tar",
    ):
        answer = await ask(mirror, "GET", path, user)
        assert b"alice/app" not in answer.body or answer.status == 404, path
    if user is None:
        return
    for source in ("&from=alice/app", "&from=library/public", ""):
        answer = await ask(mirror, "POST", f"/v2/bob/app/blobs/uploads/?mount={layer}{source}", "bob")
        assert answer.status == 202, "an upload is begun in its place"
        assert (await ask(mirror, "HEAD", f"/v2/bob/app/blobs/{layer}", "bob")).status == 404
    assert (await ask(mirror, "POST", f"/v2/bob/app/blobs/uploads/?digest={Digest.of(CONFIG)}", "bob", CONFIG)).status == 201
    answer = await ask(mirror, "PUT", "/v2/bob/app/manifests/stolen", "bob", manifest(LAYER), Content_Type=OCI_MANIFEST)
    assert answer.status in (400, 404)
    assert (await ask(mirror, "GET", f"/v2/bob/app/blobs/{layer}", "bob")).status == 404
    # Whoever has the bytes may push them.
    assert (await ask(mirror, "POST", f"/v2/bob/app/blobs/uploads/?digest={layer}", "bob", LAYER)).status == 201
    assert (await ask(mirror, "GET", f"/v2/bob/app/blobs/{layer}", "bob")).status == 200


async def test_cached_content_is_mounted_by_who_may_pull_it(mirror: Mirror, upstream: Scripted) -> None:
    """A base layer that is cached need not be pushed: by one who may pull from where it is."""
    image = upstream.add_image("library/base", "1")
    assert (await mirror.get("/v2/library/base/manifests/1")).status == 200
    assert (await mirror.get(f"/v2/library/base/blobs/{image.layers[0]}")).status == 200
    await mirror.until_cached(image.layers[0])
    answer = await ask(mirror, "POST", f"/v2/bob/app/blobs/uploads/?mount={image.layers[0]}&from=library/base", "bob")
    assert answer.status == 201
    assert (await ask(mirror, "GET", f"/v2/bob/app/blobs/{image.layers[0]}", "bob")).status == 200


@pytest.mark.parametrize(
    "kind", ["application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"]
)
async def test_nobody_gets_a_layer_by_naming_it_as_one_that_registries_do_not_have(mirror: Mirror, kind: str) -> None:
    """Such a manifest is taken, though its repository lacks the layer. It opens neither a name, nor a mount, nor a bundle, though whoever pushed it may pull it."""
    await push(mirror, "alice", "alice/app", LAYER)
    await push(mirror, "bob", "bob/app")
    layer = Digest.of(LAYER)
    body = json.loads(manifest(LAYER))
    body["layers"][0]["mediaType"] = kind
    answer = await ask(mirror, "PUT", "/v2/bob/app/manifests/2", "bob", json.dumps(body).encode(), Content_Type=OCI_MANIFEST)
    assert answer.status == 201
    for name in ("bob/app", "library/public", "ghcr.io/bob/app"):
        for method in ("GET", "HEAD"):
            assert (await ask(mirror, method, f"/v2/{name}/blobs/{layer}", "bob")).status == 404
    for source in ("&from=bob/app", ""):
        assert (await ask(mirror, "POST", f"/v2/bob/app/blobs/uploads/?mount={layer}{source}", "bob")).status == 202
    for query in ("bob/app:2.tar", "all.tar?images=bob/app:2,bob/app:1"):
        bundle = await ask(mirror, "GET", f"/export/{query}", "bob")
        assert bundle.status == 200
        assert LAYER[:20] not in bundle.body


async def test_a_bundle_by_digest_is_of_a_repository_that_has_it(mirror: Mirror) -> None:
    """Of a hosted one that was pushed to, and of no other that whoever asks may pull from, alone or in a list."""
    digest, own = await push(mirror, "alice", "alice/app", LAYER), await push(mirror, "bob", "bob/app", b"his own")
    for name in ("bob/app", "library/public", "ghcr.io/bob/app"):
        for path in (f"{name}@{digest}.tar", f"all.tar?images=bob/app:1,{name}@{digest}"):
            answer = await ask(mirror, "GET", f"/export/{path}", "bob")
            assert answer.status == 404, path
            assert LAYER[:20] not in answer.body
    answer = await ask(mirror, "GET", f"/export/bob/app@{own}.tar", "bob")
    assert answer.status == 200
    assert b"his own" in answer.body
