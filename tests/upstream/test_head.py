"""HEAD's refusal is no answer: registries and stores refuse it for what they give to GET."""

from __future__ import annotations

import pytest

from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror
from tests.support.scripted import Fault, Headers, Raw, Redirect, Scripted, Silence, Status

LATEST = "/v2/app/manifests/latest"
_REFUSALS: list[Fault] = [
    *(Status(status) for status in (400, 401, 403, 404, 405, 408, 410, 500, 501, 502)),
    Status(401, {"WWW-Authenticate": 'Basic realm="x"'}),
    Raw(),
    Raw(reset=True),
    Raw(b"HTTP/1.1 200\r\nContent-Length: x\r\n\r\n"),
    Redirect("/elsewhere"),
    Redirect("http://127.0.0.1:1/"),
    Silence(),
    Headers({"Content-Length": "0"}),
    Headers({"Docker-Content-Digest": None}),
    Headers({"Content-Type": "text/html"}),
]


@pytest.mark.parametrize("refusal", _REFUSALS, ids=str)
async def test_an_uncached_tag_is_found_by_get(start: StartMirror, upstream: Scripted, refusal: Fault) -> None:
    """A client's HEAD is answered; the next one does not try HEAD again, and the circuit stays closed."""
    for tag in ("latest", "next"):
        upstream.add_image("library/app", tag)
    upstream.fail("manifests/", refusal, times=50, method="HEAD")
    mirror: Mirror = await start()
    assert (await mirror.head(LATEST)).status == 200
    heads = upstream.count("HEAD")
    assert (await mirror.head("/v2/app/manifests/next")).status == 200
    assert upstream.count("HEAD") == heads
    assert b'"degraded": []' in (await mirror.get("/readyz")).body


@pytest.mark.parametrize("refusal", _REFUSALS, ids=str)
async def test_a_cached_tag_follows_upstream_by_get(start: StartMirror, upstream: Scripted, refusal: Fault) -> None:
    """It is neither dropped nor frozen on what it meant before."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0)
    assert (await mirror.get(LATEST)).status == 200
    moved = upstream.add_image("library/app", "latest")
    upstream.fail("manifests/", refusal, times=50, method="HEAD")
    assert (await mirror.get(LATEST)).body == moved.body


async def test_a_size_that_head_told_wrongly_is_set_right(start: StartMirror, upstream: Scripted) -> None:
    """Clients check what they get by it: once the manifest is here, its own size is told."""
    image = upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    upstream.fail("latest", Headers({"Content-Length": "5"}), method="HEAD")
    await mirror.head(LATEST)
    assert (await mirror.get(f"/v2/app/manifests/{image.digest}")).body == image.body
    assert (await mirror.head(LATEST)).headers["Content-Length"] == str(len(image.body))


async def test_what_get_refuses_too_is_refused(start: StartMirror, upstream: Scripted) -> None:
    """A missing tag is a 404 for HEAD and GET, by one request more; and HEAD is not distrusted for that."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start()
    assert (await mirror.head("/v2/app/manifests/none")).status == 404
    assert (upstream.count("HEAD"), upstream.count("GET")) == (1, 1)
    assert (await mirror.head(LATEST)).status == 200
    assert (upstream.count("HEAD"), upstream.count("GET")) == (2, 1)


@pytest.mark.parametrize("refusal", [None, *_REFUSALS], ids=str)
@pytest.mark.parametrize("data", [b"", b"x" * 1000], ids=["empty", "some"])
async def test_a_blobs_size_is_found_by_get(start: StartMirror, upstream: Scripted, data: bytes, refusal: Fault | None) -> None:
    """That of an empty one too, which has no first byte to ask for."""
    blob = upstream.add_blob(data)
    assert blob == Digest.of(data)
    if refusal is not None:
        upstream.fail("blobs/", refusal, times=50, method="HEAD")
    mirror: Mirror = await start()
    answer = await mirror.head(f"/v2/app/blobs/{blob}")
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(data)))
    assert (await mirror.get(f"/v2/app/blobs/{blob}")).body == data
