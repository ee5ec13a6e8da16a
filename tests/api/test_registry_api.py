"""OCI distribution-spec 1.1, "Pull" and "Content Discovery", as a client sees it; what the conformance suite checks is held here."""

from __future__ import annotations

import asyncio
import contextlib
import email
import json
import os
from typing import Any

import pytest

from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

NOWHERE = f"sha256:{'0' * 64}"


def errors(body: bytes) -> dict[str, Any]:
    """The one error of an OCI error body."""
    document = json.loads(body)
    assert set(document) == {"errors"}
    (error,) = document["errors"]
    assert set(error) == {"code", "message", "detail"}
    return dict(error)


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/ghcr.io/v2/"])
async def test_the_base_is_200_for_anyone(mirror: Mirror, path: str) -> None:
    """A 401 would make dockerd bypass the mirror."""
    answer = await mirror.get(path)
    assert answer.status == 200
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert answer.headers["Content-Type"] == "application/json"


async def test_manifests_by_tag_and_digest(mirror: Mirror, upstream: Scripted) -> None:
    """GET and HEAD agree in everything but the body, cold and warm, and the bytes are upstream's."""
    body = b'{\n  "schemaVersion" : 2, "mediaType":"%s","config":{},   "layers":[]}\n' % OCI_MANIFEST.encode()
    digest = upstream.add_manifest("library/app", "latest", body)
    for reference in ("latest", str(digest)):
        for _ in range(2):
            head = await mirror.head(f"/v2/app/manifests/{reference}")
            got = await mirror.get(f"/v2/app/manifests/{reference}", Accept="*/*")
            assert (head.status, got.status, head.body, got.body) == (200, 200, b"", body)
            for name, value in {
                "Docker-Content-Digest": str(digest),
                "Content-Type": OCI_MANIFEST,
                "Content-Length": str(len(body)),
                "ETag": f'"{digest}"',
                "Docker-Distribution-Api-Version": "registry/2.0",
            }.items():
                assert head.headers[name] == got.headers[name] == value
            assert "Cache-Status" in head.headers
    assert upstream.asked[0].accept is not None
    assert OCI_INDEX in upstream.asked[0].accept


async def test_what_is_asked_upstream_does_not_depend_on_the_clients_accept(mirror: Mirror, upstream: Scripted) -> None:
    """Whoever comes first, the same bytes are cached; an index stays an index."""
    image = upstream.add_image("library/app")
    index, body = upstream.add_index("library/app", "latest", [image])
    for accept in (OCI_MANIFEST, "text/html", f"{OCI_INDEX}, */*"):
        answer = await mirror.get("/v2/app/manifests/latest", Accept=accept)
        assert (answer.body, answer.headers["Content-Type"], answer.headers["Docker-Content-Digest"]) == (
            body,
            OCI_INDEX,
            str(index),
        )
    assert upstream.count("GET") == 1


async def test_blobs_whole_and_in_ranges(mirror: Mirror, upstream: Scripted) -> None:
    """a-b, a-, -n, past the end and 416, small and large, on a miss and on a hit."""
    for size in (1000, 300_000):
        data = os.urandom(size)
        blob = upstream.add_blob(data)
        path = f"/v2/app/blobs/{blob}"
        for _ in range(2):
            whole = await mirror.get(path)
            assert (whole.status, whole.body) == (200, data)
            assert whole.headers["Accept-Ranges"] == "bytes"
            assert whole.headers["Docker-Content-Digest"] == str(blob)
            for header, start, stop in (
                ("bytes=0-99", 0, 100),
                (f"bytes={size - 10}-", size - 10, size),
                ("bytes=-10", size - 10, size),
                (f"bytes=5-{size * 2}", 5, size),
            ):
                part = await mirror.get(path, Range=header)
                assert (part.status, part.body) == (206, data[start:stop])
                assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
                assert part.headers["Content-Length"] == str(stop - start)
            beyond = await mirror.get(path, Range=f"bytes={size}-")
            assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
            assert errors(beyond.body)["code"] == "RANGE_INVALID"
        head = await mirror.head(path, Range="bytes=0-9")
        assert (head.status, head.headers["Content-Length"]) == (200, str(size))
        assert upstream.count("GET", str(blob)) == 1


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("cached", [False, True])
async def test_several_ranges_are_one_multipart_answer(start: StartMirror, upstream: Scripted, size: int, cached: bool) -> None:
    """In the order asked for, each with its place, and nothing else of the blob; as podman asks for the chunks of a zstd:chunked layer."""
    mirror: Mirror = await start()
    data = os.urandom(size)
    blob = upstream.add_blob(data)
    path = f"/v2/app/blobs/{blob}"
    if cached:
        await mirror.get(path)
        await mirror.until_cached(blob)
    ranges = [(size // 2, size // 2 + 300), (10, 11), (size - 50, size)]
    got = await mirror.get(path, Range="bytes=" + ",".join(f"{first}-{stop - 1}" for first, stop in ranges))
    assert got.status == 206
    assert got.headers["Content-Length"] == str(len(got.body))
    message = email.message_from_bytes(b"Content-Type: " + got.headers["Content-Type"].encode() + b"\r\n\r\n" + got.body)
    assert message.get_content_type() == "multipart/byteranges"
    boundary = message.get_boundary()
    pieces = got.body.split(f"\r\n--{boundary}".encode())
    assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
    for (first, stop), piece in zip(ranges, pieces[1:-1], strict=True):
        head, _, body = piece.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {first}-{stop - 1}/{size}".encode() in head
        assert body == data[first:stop]
    assert (await mirror.get(path, Range="bytes=0-9,5-19")).headers["Content-Range"] == f"bytes 0-19/{size}"


async def test_conditional_requests(mirror: Mirror, upstream: Scripted) -> None:
    """If-None-Match gives 304 without a body; If-Range that does not match gives the whole."""
    image = upstream.add_image("library/app", "latest")
    blob = f"/v2/app/blobs/{image.layers[0]}"
    for path, digest in (("/v2/app/manifests/latest", image.digest), (blob, image.layers[0])):
        for method in ("GET", "HEAD", "GET"):
            answer = await mirror.get(path, method, If_None_Match=f'"{digest}"')
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["ETag"] == f'"{digest}"'
        assert (await mirror.get(path, If_None_Match='"other"')).status == 200
    assert (await mirror.get(blob, Range="bytes=0-9", If_Range='"other"')).status == 200
    assert (await mirror.get(blob, Range="bytes=0-9", If_Range=f'"{image.layers[0]}"')).status == 206


async def test_an_empty_blob(mirror: Mirror, upstream: Scripted) -> None:
    """It has a digest like any other."""
    blob = upstream.add_blob(b"")
    for _ in range(2):
        answer = await mirror.get(f"/v2/app/blobs/{blob}")
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
        await mirror.until_cached(blob)


async def test_what_is_not_there(mirror: Mirror, upstream: Scripted) -> None:
    """404 with the code of what is missing, or UNKNOWN where upstream's 404 is not in a registry's words; no body for HEAD."""
    upstream.add_image("library/app", "latest")
    for path, code in (
        ("/v2/app/manifests/none", "MANIFEST_UNKNOWN"),
        (f"/v2/app/manifests/{NOWHERE}", "MANIFEST_UNKNOWN"),
        (f"/v2/app/blobs/{NOWHERE}", "BLOB_UNKNOWN"),
        ("/v2/other/tags/list", "UNKNOWN"),
    ):
        answer = await mirror.get(path)
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "application/json"
        assert errors(answer.body)["code"] == code
        assert answer.headers["Cache-Status"].startswith("mirror; ")
        head = await mirror.head(path)
        assert (head.status, head.body) == (404, b"")


async def test_tags_are_listed_in_order_and_in_pages(mirror: Mirror, upstream: Scripted) -> None:
    """`n` and `last`, with a Link to the next page, which a client can follow to the end; upstream is asked once."""
    tags = sorted(["latest", "v1", "v10", "v2", "A", "z_9"])
    for tag in tags:
        upstream.add_image("library/app", tag)
    answer = await mirror.get("/v2/app/tags/list")
    assert json.loads(answer.body) == {"name": "library/app", "tags": tags}
    assert "Link" not in answer.headers
    path, found = "/v2/app/tags/list?n=4", []
    while path:
        answer = await mirror.get(path)
        page = json.loads(answer.body)["tags"]
        assert len(page) <= 4
        found += page
        path = answer.headers["Link"].partition(">")[0].removeprefix("<") if "Link" in answer.headers else ""
    assert found == tags
    assert json.loads((await mirror.get("/v2/app/tags/list?n=0")).body)["tags"] == []
    assert json.loads((await mirror.get("/v2/app/tags/list?last=v1")).body)["tags"] == ["v10", "v2", "z_9"]
    for wrong in ("-1", "x", "1.5", ""):
        answer = await mirror.get(f"/v2/app/tags/list?n={wrong}")
        assert (answer.status, errors(answer.body)["code"]) == (400, "PAGINATION_NUMBER_INVALID")
    assert upstream.count("GET", "/tags/list") == 1


async def test_lists_are_served_stale_and_tags_known_otherwise_fill_in(start: StartMirror, upstream: Scripted) -> None:
    """With upstream gone: the list it gave last; where it never gave one, the tags that were pulled."""
    image = upstream.add_image("library/app", "v1")
    upstream.add_image("owner/tool", "v2")
    mirror: Mirror = await start(tag_ttl=0)
    await mirror.get("/v2/app/tags/list")
    await mirror.get(f"/v2/app/referrers/{image.digest}")
    await mirror.get("/v2/owner/tool/manifests/v2")
    await upstream.stop()
    for path, expected in (("/v2/app/tags/list", "v1"), ("/v2/owner/tool/tags/list", "v2")):
        answer = await mirror.get(path)
        assert json.loads(answer.body)["tags"] == [expected]
        assert "fwd=stale" in answer.cache
    assert "fwd=stale" in (await mirror.get(f"/v2/app/referrers/{image.digest}")).cache
    assert (await mirror.get("/v2/nothing/tags/list")).status == 503


async def test_referrers(mirror: Mirror, upstream: Scripted) -> None:
    """An index of descriptors, filtered by artifactType, saying so; an empty one where there are none."""
    image = upstream.add_image("library/app", "latest")
    subject = {"mediaType": OCI_MANIFEST, "digest": str(image.digest), "size": len(image.body)}
    one = upstream.add_image("library/app", subject=subject, artifactType="application/sbom")
    two = upstream.add_image("library/app", subject=subject, artifactType="application/signature")
    path = f"/v2/app/referrers/{image.digest}"
    answer = await mirror.get(path)
    assert answer.headers["Content-Type"] == OCI_INDEX
    assert {entry["digest"] for entry in json.loads(answer.body)["manifests"]} == {str(one.digest), str(two.digest)}
    answer = await mirror.get(f"{path}?artifactType=application/sbom")
    assert [entry["digest"] for entry in json.loads(answer.body)["manifests"]] == [str(one.digest)]
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    empty = json.loads((await mirror.get(f"/v2/app/referrers/{NOWHERE}")).body)
    assert (empty["schemaVersion"], empty["mediaType"], empty["manifests"]) == (2, OCI_INDEX, [])
    assert upstream.count("GET", f"/referrers/{image.digest}") == 1


async def test_the_catalog_lists_what_is_cached(start: StartMirror, upstream: Scripted) -> None:
    """By the names under which it can be pulled from here, in pages, of all registries or of one."""
    mirror: Mirror = await start(
        settings={"registries": {"docker.io": {"endpoints": [upstream.url]}, "ghcr.io": {"endpoints": [upstream.url]}}}
    )
    for name in ("library/app", "owner/tool"):
        upstream.add_image(name, "latest")
    for path in ("/v2/app/manifests/latest", "/v2/owner/tool/manifests/latest", "/v2/owner/tool/manifests/latest?ns=ghcr.io"):
        await mirror.get(path)
    everything = ["ghcr.io/owner/tool", "library/app", "owner/tool"]
    assert json.loads((await mirror.get("/v2/_catalog")).body) == {"repositories": everything}
    page = await mirror.get("/v2/_catalog?n=2")
    assert json.loads(page.body)["repositories"] == everything[:2]
    following = await mirror.get(page.headers["Link"].partition(">")[0].removeprefix("<"))
    assert json.loads(following.body)["repositories"] == everything[2:]
    assert json.loads((await mirror.get("/v2/_catalog?ns=ghcr.io")).body)["repositories"] == ["owner/tool"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/app/blobs/uploads/"),
        ("PATCH", "/v2/app/blobs/uploads/1"),
        ("GET", "/v2/app/blobs/uploads/1"),
        ("PUT", "/v2/app/manifests/latest"),
        ("DELETE", f"/v2/app/blobs/{NOWHERE}"),
        ("DELETE", "/v2/app/manifests/latest"),
        ("OPTIONS", "/v2/"),
    ],
)
async def test_pushes_and_deletes_are_405(mirror: Mirror, upstream: Scripted, method: str, path: str) -> None:
    """UNSUPPORTED, saying what is, and upstream hears nothing of it."""
    answer = await mirror.get(path, method)
    assert answer.status == 405
    assert errors(answer.body)["code"] == "UNSUPPORTED"
    assert answer.headers["Allow"] == "GET, HEAD"
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/UPPER/manifests/x", 400, "NAME_INVALID"),
        ("/v2/x/a..b/manifests/x", 400, "NAME_INVALID"),
        ("/v2/-a/manifests/x", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 300}/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/x", 400, "NAME_INVALID"),
        ("/v2/../../etc/passwd/manifests/x", 404, "NAME_UNKNOWN"),
        ("/v2/a/%2e%2e/b/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a%2fb/manifests/x", 400, "UNSUPPORTED"),
        ("/v2/a%00b/manifests/x", 400, "UNSUPPORTED"),
        ("/v2/a%ff/manifests/x", 400, "UNSUPPORTED"),
        ("/v2/a%zz/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a/manifests/.x", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/a/manifests/{'x' * 129}", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/md5:{'a' * 32}", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/latest", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/", 400, "DIGEST_INVALID"),
        ("/v2/a/referrers/x", 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/x?ns=%zz%ff", 400, "UNSUPPORTED"),
        ("/v2/a/manifests/x?" + "&".join("a=1" for _ in range(30)), 400, "UNSUPPORTED"),
        ("/v2/a/manifests/x?ns=../../etc", 404, "NAME_UNKNOWN"),
        ("/v2/a/b", 404, "NAME_UNKNOWN"),
        ("/v3/", 404, "NAME_UNKNOWN"),
        ("/nothing", 404, "NAME_UNKNOWN"),
    ],
)
async def test_bad_input_gets_a_clear_error(mirror: Mirror, upstream: Scripted, path: str, status: int, code: str) -> None:
    """Over a raw connection, so that nothing tidies the path up; upstream hears nothing of it."""
    answer, body = await raw(mirror, f"GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert errors(body)["code"] == code
    assert len(errors(body)["message"]) > 10
    assert upstream.asked == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v2/" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: m\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: m\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: m\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(500)) + b"\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: m\r\nBad Header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v2/\x00 HTTP/1.1\r\nHost: m\r\n\r\n",
        b"GET v2 HTTP/1.1\r\nHost: m\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: m\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\nHost: m\r\n\r\n",
        b"POST /v2/ HTTP/1.1\r\nHost: m\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/ HTTP/1.1\r\nHost: m\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
    ],
)
async def test_what_is_hardly_http(mirror: Mirror, request_bytes: bytes) -> None:
    """An OCI error or a closed connection, and the mirror serves the next one."""
    answer, body = await raw(mirror, request_bytes)
    if answer:
        assert answer.split(" ")[1][0] in "24"
        if answer.split(" ")[1][0] == "4":
            assert errors(body)["code"] in ("UNSUPPORTED", "NAME_UNKNOWN")
    assert (await mirror.get("/v2/")).status == 200


async def test_malformed_ranges_are_416(mirror: Mirror, upstream: Scripted) -> None:
    """With a message that names the forms there are."""
    blob = upstream.add_blob(b"x" * 100)
    for header in ("bytes=5-2", "bytes=x", "bytes=--1", "bytes=100-"):
        answer = await mirror.get(f"/v2/app/blobs/{blob}", Range=header)
        assert answer.status == 416
        assert b"bytes=a-b" in answer.body


@pytest.mark.parametrize("sent", [b"", b"GET /v2/ HTTP/1.1\r\nHost: m\r\n", b"GET /v2/ HTTP/1.1\r\nHost: m\r\n\r\nGET /"])
async def test_a_connection_without_a_request_does_not_stay(
    start: StartMirror, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Nobody can hold files of the mirror by requests that never come, or never come to their end."""
    monkeypatch.setattr("mirror.api.server.IDLE", 0.3)
    mirror = await start()
    host, port = mirror.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    answered = await asyncio.wait_for(reader.read(), PATIENCE)
    assert answered.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def raw(mirror: Mirror, request: bytes) -> tuple[str, bytes]:
    """Sends bytes as they are; the answer's head and body."""
    host, port = mirror.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        text = head.decode("latin-1")
        length = next((int(line.split(":")[1]) for line in text.split("\r\n") if line.lower().startswith("content-length")), 0)
        return text, await asyncio.wait_for(reader.readexactly(length), PATIENCE)
    except (asyncio.IncompleteReadError, ConnectionError):
        return "", b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_many_requests_on_one_connection(mirror: Mirror, upstream: Scripted) -> None:
    """Keep-alive works across large and small bodies, and pipelined requests are answered in order."""
    blob = upstream.add_blob(os.urandom(200_000))
    image = upstream.add_image("library/app", "latest")
    await mirror.get(f"/v2/app/blobs/{blob}")
    await mirror.until_cached(blob)
    host, port = mirror.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    paths = [f"/v2/app/blobs/{blob}", "/v2/app/manifests/latest", f"/v2/app/blobs/{blob}", "/v2/"]
    writer.write(b"".join(f"GET {path} HTTP/1.1\r\nHost: m\r\n\r\n".encode() for path in paths))
    bodies = []
    for _ in paths:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
        bodies.append(await reader.readexactly(length))
    writer.close()
    await writer.wait_closed()
    assert [Digest.of(bodies[0]), bodies[1], Digest.of(bodies[2]), bodies[3]] == [blob, image.body, blob, b"{}"]


async def test_health_readiness_and_metrics(mirror: Mirror, upstream: Scripted) -> None:
    """Alive; ready, with every endpoint; and the names that other mirrors' dashboards use. None of them counts as a hit of the cache."""
    image = upstream.add_image("library/app", "latest")
    for path in ("/healthz", "/readyz", "/metrics", "/v2/"):
        assert "Cache-Status" not in (await mirror.get(path)).headers
    assert json.loads((await mirror.get("/healthz")).body) == {"status": "alive"}
    ready = json.loads((await mirror.get("/readyz")).body)
    assert (ready["status"], ready["degraded"]) == ("ready", [])
    [endpoint] = ready["registries"]["docker.io"]
    assert (endpoint["endpoint"], endpoint["state"], endpoint["last_error"]) == (upstream.url, "ok", None)
    names = ("requests", "hits", "misses", "pulled_bytes", "pushed_bytes")

    async def read() -> dict[tuple[str, str], float]:
        text = (await mirror.get("/metrics")).body.decode()
        return {
            (name, kind): sum(
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith(f'registry_proxy_{name}_total{{type="{kind}",upstream_host="docker.io"}}')
            )
            for name in names
            for kind in ("blob", "manifest")
        }

    before = await read()
    for _ in range(2):
        await mirror.get("/v2/app/manifests/latest")
        await mirror.get(f"/v2/app/blobs/{image.layers[0]}")
        await mirror.until_cached(image.layers[0])
    after = await read()
    size = len(image.body)
    assert {key: after[key] - before[key] for key in after} == {
        ("requests", "blob"): 2, ("requests", "manifest"): 2, ("hits", "blob"): 1, ("hits", "manifest"): 1, ("misses", "blob"): 1,
        ("misses", "manifest"): 1, ("pulled_bytes", "blob"): 1000, ("pulled_bytes", "manifest"): size, ("pushed_bytes", "blob"): 2000,
        ("pushed_bytes", "manifest"): 2 * size,
    }  # fmt: skip
