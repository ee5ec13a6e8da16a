"""Pushes by the rules of access, and what was pushed for some: nobody else gets it by any name, mount or reference."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.api.test_gate import basic, users_file  # noqa: F401  a fixture
from tests.support.mirrors import Got, Mirror, StartMirror, read_to_end
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


@pytest.mark.parametrize("user", ["alice", "bob", None])
async def test_who_may_change_what(mirror: Mirror, user: str | None) -> None:
    """Each route that changes something, for one who may push and delete, one who may only pull elsewhere, and nobody: 404 where pulling is not allowed, 403 where it is."""
    await push(mirror, "alice", "alice/app", LAYER)
    layer = Digest.of(LAYER)
    routes = {
        ("POST", "/v2/alice/app/blobs/uploads/"): 202,
        ("POST", f"/v2/alice/app/blobs/uploads/?mount={layer}&from=alice/app"): 201,
        ("PATCH", "/v2/alice/app/blobs/uploads/x"): 404,
        ("PUT", f"/v2/alice/app/blobs/uploads/x?digest={layer}"): 404,
        ("GET", "/v2/alice/app/blobs/uploads/x"): 404,
        ("DELETE", "/v2/alice/app/blobs/uploads/x"): 404,
        ("PUT", "/v2/alice/app/manifests/2"): 400,
        ("DELETE", "/v2/alice/app/manifests/2"): 404,
        ("DELETE", f"/v2/alice/app/blobs/{layer}"): 409,  # its manifest is there
    }
    for (method, path), status in routes.items():
        answer = await ask(mirror, method, path, user)
        assert "WWW-Authenticate" not in answer.headers
        if user == "alice":
            assert answer.status == status, (method, path, answer.body)
        else:
            assert answer.status == 404, (method, path)
            assert json.loads(answer.body)["errors"][0]["code"] == "NAME_UNKNOWN", (method, path)
    # Where pulling is allowed and pushing is not.
    answer = await ask(mirror, "POST", "/v2/library/public/blobs/uploads/", user)
    assert answer.status == 403
    if user == "bob":
        await push(mirror, "bob", "bob/app", b"his own")
        assert (await ask(mirror, "DELETE", "/v2/bob/app/manifests/1", "bob")).status == 403


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
