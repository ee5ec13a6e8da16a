"""Upstreams that lie, or are not registries at all."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mirror.manifests import OCI_MANIFEST
from mirror.names import Digest
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Headers, Redirect, Scripted, Status

LATEST = "/v2/app/manifests/latest"
HTML = b"<html>Sign in to the hotel's network</html>" * 20


@contextlib.asynccontextmanager
async def server(answer: Callable[[asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """Reads a request, whatever it is, and lets `answer` write to the connection. Gives its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


@pytest.mark.parametrize("head", ["", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_an_empty_body_is_no_blob(start: StartMirror, head: str) -> None:
    """200 with nothing in it, as caches of expired blobs give: an error, not an empty file."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        end = "0\r\n\r\n" if "chunked" in head else ""
        writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\n{head}\r\n{end}".encode())
        await writer.drain()

    blob = Digest.of(b"something")
    async with server(answer) as url:
        mirror: Mirror = await start(endpoints=[url])
        for _ in range(2):
            got = await mirror.get(f"/v2/app/blobs/{blob}")
            assert got.cut or got.status == 503
            assert (await mirror.head(f"/v2/app/blobs/{blob}")).status == 503
        assert not mirror.cached(blob)
        assert mirror.spooled() == []


async def test_a_page_for_people_is_no_blob(mirror: Mirror, upstream: Scripted) -> None:
    """HTML under a blob's name never ends cleanly, is not kept, and HEAD is not believed further than its length."""
    blob = upstream.add_blob(data := os.urandom(1000))
    upstream.fail(str(blob), Status(200, {"Content-Type": "text/html"}, HTML), times=2)
    answer = await mirror.get(f"/v2/app/blobs/{blob}")
    assert answer.cut
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert not mirror.cached(blob)
    upstream.heal()
    assert (await mirror.get(f"/v2/app/blobs/{blob}")).body == data


async def test_a_head_of_another_media_type_is_not_believed(mirror: Mirror, upstream: Scripted) -> None:
    """What it says is checked against the document: client and catalog never hear of text/html."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("latest", Headers({"Content-Type": "text/html"}), method="HEAD")
    head = await mirror.head(LATEST)
    assert (head.status, head.headers["Content-Type"]) == (200, OCI_MANIFEST)
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert upstream.count("GET") == 1


async def test_content_that_is_encoded_all_the_same(mirror: Mirror, upstream: Scripted) -> None:
    """Identity was asked for. A file that is named by its packed bytes is right as it came; packed on the way, it is not what the digest says."""
    packed = gzip.compress(os.urandom(1000))
    layer, other = upstream.add_blob(packed), upstream.add_blob(b"x" * 1000)
    upstream.fail(str(layer), Status(200, {"Content-Encoding": "gzip"}, packed))
    answer = await mirror.get(f"/v2/app/blobs/{layer}")
    assert (answer.body, answer.headers.get("Content-Encoding")) == (packed, None)
    upstream.fail(str(other), Status(200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 1000)), times=9)
    assert (await mirror.get(f"/v2/app/blobs/{other}")).cut
    assert not mirror.cached(other)


@pytest.mark.parametrize("by_tag", [True, False])
@pytest.mark.parametrize(
    ("encode", "status"),
    [
        (gzip.compress, 200),
        # It says so, but it is not.
        (bytes, 200),
        (lambda body: gzip.compress(body)[:-9], 503),
        (lambda body: gzip.compress(body)[:20] + bytes(50), 503),
        # 100 MB.
        (lambda body: gzip.compress(body + bytes(100_000_000), 1), 503),
    ],
)
async def test_documents_that_are_encoded_all_the_same(
    mirror: Mirror, upstream: Scripted, encode: Callable[[bytes], bytes], status: int, by_tag: bool
) -> None:
    """As Go's clients do, the mirror decodes a manifest that came with gzip, within the bounds of a document; its HEAD's length is not the manifest's."""
    image = upstream.add_image("library/app", "latest")
    path = LATEST if by_tag else f"/v2/app/manifests/{image.digest}"
    encoded = {"Content-Type": OCI_MANIFEST, "Content-Encoding": "gzip", "Docker-Content-Digest": str(image.digest)}
    packed = encode(image.body)
    for method in ("GET", "HEAD"):
        upstream.fail("/manifests/", Status(200, encoded, packed), times=9, method=method)
    head = await mirror.head(path)
    assert head.status == status
    answer = await mirror.get(path)
    assert (answer.status, answer.headers.get("Content-Encoding")) == (status, None)
    assert mirror.cached(image.digest) == (status == 200)
    if status == 200:
        assert (answer.body, head.headers["Content-Length"]) == (image.body, str(len(image.body)))


async def test_a_list_that_is_encoded_all_the_same(mirror: Mirror, upstream: Scripted) -> None:
    """Tags, as plain JSON."""
    packed = gzip.compress(b'{"name": "library/app", "tags": ["1", "2"]}')
    upstream.fail("/tags/list", Status(200, {"Content-Encoding": "gzip"}, packed))
    assert json.loads((await mirror.get("/v2/app/tags/list")).body)["tags"] == ["1", "2"]


async def test_redirects_without_end(mirror: Mirror, upstream: Scripted) -> None:
    """Each to another place: given up after a few."""
    upstream.add_image("library/app", "latest")
    for number in range(100):
        upstream.fail(f"hop-{number}", Redirect(f"/v2/library/app/manifests/hop-{number + 1}x"), times=50)
    upstream.fail("latest", Redirect("/v2/library/app/manifests/hop-0"), times=50)
    answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"redirects in a loop, or too often" in answer.body
    assert upstream.count("GET") <= 8


@pytest.mark.parametrize("kind", ["bearer", "basic"])
async def test_challenges_without_end(start: StartMirror, upstream: Scripted, kind: str) -> None:
    """Whatever credentials are given, 401 again: asked twice, then it is an answer."""
    upstream.add_image("library/app", "latest")
    challenge = f'Bearer realm="{upstream.url}/token",service="s"' if kind == "bearer" else 'Basic realm="r"'
    upstream.fail("latest", Status(401, {"WWW-Authenticate": challenge}), times=100)
    mirror: Mirror = await start(
        settings={"registries": {"docker.io": {"endpoints": [upstream.url], "username": "u", "password": "p"}}}
    )
    for _ in range(2):
        answer = await mirror.get(LATEST)
        assert (answer.status, answer.headers.get("WWW-Authenticate")) == (403, None)
    assert upstream.count("GET", "latest") <= 4


async def test_a_realm_on_another_host_gets_the_credentials_and_nobody_else(start: StartMirror, upstream: Scripted) -> None:
    """As with Docker Hub, the registry says where its tokens come from; the token goes back to the registry alone."""
    upstream.auth = "bearer"
    upstream.add_image("library/app", "latest")
    async with Scripted() as service:
        service.accounts = {"robot": "secret-pw"}
        service._tokens = upstream._tokens
        upstream.realm = f"{service.url}/token"
        mirror: Mirror = await start(
            settings={"registries": {"docker.io": {"endpoints": [upstream.url], "username": "robot", "password": "secret-pw"}}}
        )
        assert (await mirror.get(LATEST)).status == 200
        assert [asked.path for asked in service.asked] == ["/token"]
        assert all("Basic" not in (asked.authorization or "") for asked in upstream.asked)


@pytest.mark.parametrize("what", ["headers", "body"])
async def test_an_upstream_that_drips(start: StartMirror, what: str) -> None:
    """A byte now and then keeps no client waiting: a manifest is there within the header timeout, or it is an error."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        if what == "body":
            writer.write(b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"X: y\r\n" if what == "headers" else b" ")
            await writer.drain()
            await asyncio.sleep(0.1)

    async with server(answer) as url:
        mirror: Mirror = await start(endpoints=[url])
        async with asyncio.timeout(PATIENCE):
            got = await mirror.get(LATEST)
        assert got.status == 503
        assert b"in time" in got.body


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"",
    ],
    ids=["headers", "header", "negative", "two-lengths", "chunk", "999", "continue", "204", "304", "nothing"],
)
async def test_answers_that_break_the_protocol(start: StartMirror, sent: bytes) -> None:
    """For manifests and for blobs an error that names upstream, and the mirror goes on."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    async with server(answer) as url:
        mirror: Mirror = await start(endpoints=[url])
        for path in (LATEST, f"/v2/app/blobs/sha256:{'0' * 64}", "/v2/app/tags/list", f"/v2/app/referrers/sha256:{'0' * 64}"):
            got = await mirror.get(path)
            assert got.status == 503 or got.cut
            assert b"127.0.0.1" in got.body or b"docker.io" in got.body or got.cut
        await until(lambda: mirror.spooled() == [])
        assert (await mirror.get("/healthz")).status == 200


async def test_a_list_of_endless_pages(start: StartMirror, upstream: Scripted) -> None:
    """Each with a link to the next, each as large as it may be: cut short once all together are too much to hold, and told as a part."""
    page = b'{"name": "library/app", "tags": ["' + b"x" * (8 * 1024 * 1024) + b'"]}'
    for number in range(20):
        link = f'</v2/library/app/tags/list?last={number}>; rel="next"'
        upstream.fail("/tags/list", Status(200, {"Link": link}, page))
    mirror: Mirror = await start(settings={"upstream": {"attempts": 1, "header_timeout": 20}})
    answer = await mirror.get("/v2/app/tags/list")
    assert (answer.status, answer.cache) == (200, "mirror; fwd=stale; detail=partial")
    assert upstream.count("GET", "/tags/list") <= 5


@pytest.mark.parametrize("link", ["<" * 60_000, "<>;" * 20_000 + "rel"])
async def test_a_link_that_takes_long_to_read(start: StartMirror, upstream: Scripted, link: str) -> None:
    """Others are answered meanwhile: what it holds is no page, and is seen not to be one at a glance."""
    upstream.fail("/tags/list", Status(200, {"Link": link}, b'{"name": "library/app", "tags": ["a"]}'))
    mirror: Mirror = await start()
    began = time.process_time()
    assert json.loads((await mirror.get("/v2/app/tags/list")).body)["tags"] == ["a"]
    assert time.process_time() - began < 10


async def test_what_upstream_says_does_not_break_the_lines_of_the_log(
    start: StartMirror, caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters and line ends in an answer: the error is one line, here and for the client."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 2\x1b[31m00 OK\nERROR forged line\r\n\r\n")
        await writer.drain()

    async with server(answer) as url:
        mirror: Mirror = await start(endpoints=[url])
        got = await mirror.get(LATEST)
        assert got.status == 503
        [told] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert told.isprintable()
        assert url in told
