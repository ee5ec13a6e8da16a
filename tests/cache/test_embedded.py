"""Content that a manifest embeds in a descriptor, and that upstream need not have."""

from __future__ import annotations

import base64
import json

import pytest

from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import Mirror
from tests.support.scripted import Scripted, Status


def descriptor(
    data: bytes, embedded: bytes | None = None, media_type: str = "application/vnd.example.thing"
) -> dict[str, object]:
    encoded = base64.b64encode(data if embedded is None else embedded).decode()
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), "data": encoded}


def add(upstream: Scripted, *layers: dict[str, object]) -> None:
    """An artifact whose configuration is the empty object, embedded as image-spec 1.1 has it."""
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(b"{}"), "layers": layers}
    upstream.add_manifest("library/app", "1", json.dumps(body).encode())


DATA = bytes(range(256)) * 300


async def test_an_embedded_blob_that_upstream_lacks(mirror: Mirror, upstream: Scripted) -> None:
    """Whole, by range and by HEAD, once a manifest that embeds it is cached; upstream was asked first."""
    add(upstream, descriptor(DATA))
    path = f"/v2/app/blobs/{Digest.of(DATA)}"
    assert (await mirror.get(path)).status == 404
    await mirror.get("/v2/app/manifests/1")
    answer = await mirror.get(path)
    assert (answer.status, answer.body) == (200, DATA)
    part = await mirror.get(path, Range="bytes=100-199")
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, DATA[100:200], f"bytes 100-199/{len(DATA)}")
    head = await mirror.head(path)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))
    assert (await mirror.get(f"/v2/app/blobs/{Digest.of(b'{}')}")).body == b"{}"
    assert upstream.count("GET", path.rpartition("/")[2]) >= 3


async def test_an_embedded_blob_is_served_without_upstream(mirror: Mirror, upstream: Scripted) -> None:
    """No connection, a refusal or a failure: the bytes are here all the same."""
    add(upstream, descriptor(DATA))
    await mirror.get("/v2/app/manifests/1")
    digest = str(Digest.of(DATA))
    for status in (403, 500):
        upstream.fail(digest, Status(status), times=9)
        assert (await mirror.get(f"/v2/app/blobs/{digest}")).body == DATA
        upstream.heal()
    await upstream.stop()
    assert (await mirror.get(f"/v2/app/blobs/{digest}")).body == DATA


async def test_upstreams_blob_is_preferred(mirror: Mirror, upstream: Scripted) -> None:
    """Where upstream has it, it is fetched and kept like any other."""
    add(upstream, descriptor(DATA))
    digest = upstream.add_blob(DATA)
    await mirror.get("/v2/app/manifests/1")
    assert (await mirror.get(f"/v2/app/blobs/{digest}")).body == DATA
    await mirror.until_cached(digest)


@pytest.mark.parametrize(
    "wrong",
    [
        descriptor(DATA, b"other bytes"),
        descriptor(DATA, b""),
        descriptor(DATA) | {"size": len(DATA) + 1},
        descriptor(DATA) | {"size": str(len(DATA))},
        descriptor(DATA) | {"data": "%%%"},
        descriptor(DATA) | {"data": 7},
        {key: value for key, value in descriptor(DATA).items() if key != "size"},
    ],
)
async def test_embedded_bytes_are_verified(mirror: Mirror, upstream: Scripted, wrong: dict[str, object]) -> None:
    """What has not the digest and the size that its descriptor says is not served, whoever embeds it; a descriptor that is right counts beside it."""
    child = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": wrong, "layers": [wrong]}).encode()
    digest = upstream.add_manifest("library/app", "1", child)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [wrong, descriptor(child, None, OCI_MANIFEST)]}
    upstream.add_manifest("library/app", "2", json.dumps(index).encode(), OCI_INDEX)
    for reference in ("1", "2", str(digest)):
        await mirror.get(f"/v2/app/manifests/{reference}")
    for kind in ("blobs", "manifests"):
        path = f"/v2/app/{kind}/{Digest.of(DATA)}"
        assert ((await mirror.get(path)).status, (await mirror.head(path)).status) == (404, 404)
    add(upstream, wrong, descriptor(DATA))
    await mirror.get(f"/v2/app/manifests/{Digest.of(upstream.manifests['library/app', '1'][1])}")
    assert (await mirror.get(f"/v2/app/blobs/{Digest.of(DATA)}")).body == DATA


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("trouble", ["unknown", "denied", "failing", "gone", "asked before"])
async def test_an_embedded_manifest_that_upstream_does_not_give(
    mirror: Mirror, upstream: Scripted, method: str, trouble: str
) -> None:
    """An index may embed its manifests: HEAD and GET have them whatever upstream says, also when it has just said no; then they are kept as others are."""
    child = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(b"{}"), "layers": []}).encode()
    digest = Digest.of(child)
    path = f"/v2/app/manifests/{digest}"
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(child, None, OCI_MANIFEST)]}
    upstream.add_manifest("library/app", "1", json.dumps(body).encode(), OCI_INDEX)
    if trouble == "asked before":
        assert (await mirror.get(path)).status == 404
    await mirror.get("/v2/app/manifests/1")
    if trouble in ("denied", "failing"):
        for asked in ("HEAD", "GET"):
            upstream.fail(str(digest), Status(403 if trouble == "denied" else 500), times=9, method=asked)
    elif trouble == "gone":
        await upstream.stop()
    for _ in range(2):
        answer = await mirror.get(path, method)
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_MANIFEST)
        assert (answer.headers["Docker-Content-Digest"], answer.headers["Content-Length"]) == (str(digest), str(len(child)))
        assert answer.body == (child if method == "GET" else b"")
    assert mirror.cached(digest)
    seen = upstream.count("GET") + upstream.count("HEAD")
    await mirror.get(path)
    assert upstream.count("GET") + upstream.count("HEAD") == seen
