"""The shortest way of a hit must not be told from the long one, but by its speed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from mirror.storage.disk.blobs import BlobFile
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

LATEST = b"GET /v2/app/manifests/latest HTTP/1.1\r\nHost: mirror\r\nUser-Agent: test\r\n\r\n"


@contextlib.asynccontextmanager
async def connection(mirror: Mirror) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = mirror.url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode()
    status, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await asyncio.wait_for(reader.readexactly(int(headers["Content-Length"])), PATIENCE)
    return int(status.split(" ")[1]), headers, body


async def ask(mirror: Mirror, *sent: bytes, answers: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
    async with connection(mirror) as (reader, writer):
        for part in sent:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        return [await answer(reader) for _ in range(answers)]


async def test_it_gives_what_the_long_way_gives_and_counts_it(mirror: Mirror, upstream: Scripted) -> None:
    """Status, headers, body, metrics: all as if the request had been parsed; on one connection and on the next."""
    image = upstream.add_image("library/app", "latest")
    await mirror.get("/v2/app/manifests/latest")
    names = ("registry_proxy_requests_total", "registry_proxy_hits_total", "registry_proxy_pushed_bytes_total")
    before = [await mirror.metric(name) for name in names]
    got = await ask(mirror, *[LATEST] * 3, answers=3) + await ask(mirror, LATEST)
    for status, headers, body in got:
        assert (status, body) == (200, image.body)
        assert headers.pop("Date").endswith(" GMT")
        assert headers == {key: value for key, value in got[0][1].items() if key != "Date"}
    after = [await mirror.metric(name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [4, 4, 4 * len(image.body)]
    assert upstream.count("GET") == 1


async def test_it_ends_with_the_tags_freshness(start: StartMirror, upstream: Scripted) -> None:
    """A tag that has moved is seen as soon as on the long way."""
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(tag_ttl=0.5)
    await ask(mirror, *[LATEST] * 3, answers=3)
    moved = upstream.add_image("library/app", "latest")
    await asyncio.sleep(0.6)
    [(_, headers, body)] = await ask(mirror, LATEST)
    assert (body, headers["Cache-Status"]) == (moved.body, "mirror; fwd=stale; detail=validated")


@pytest.mark.parametrize(
    "sent",
    [
        [LATEST + LATEST],
        [LATEST[:10], LATEST[10:] + LATEST],
        [LATEST[:-1], LATEST[-1:], LATEST],
        [LATEST, LATEST + LATEST[:7], LATEST[7:]],
    ],
)
async def test_requests_that_come_in_pieces_or_together(mirror: Mirror, upstream: Scripted, sent: list[bytes]) -> None:
    """However the bytes arrive, each request gets one answer, in order."""
    image = upstream.add_image("library/app", "latest")
    await ask(mirror, *[LATEST] * 2, answers=2)
    count = b"".join(sent).count(b"GET ")
    got = await ask(mirror, *sent, answers=count)
    assert [body for _, _, body in got] == [image.body] * count


async def test_a_request_that_comes_while_another_is_answered_is_not_taken_for_it(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits for a slow disk, the second one comes meanwhile: its bytes are never answered with what the first one asked for."""
    images = {name: upstream.add_image(f"library/{name}", "latest") for name in ("app", "other")}
    first: Mirror = await start()
    await first.get("/v2/app/manifests/latest")
    await first.stop()
    read = BlobFile.read_all

    def slowly(file: BlobFile) -> bytes:
        time.sleep(0.3)
        return read(file)

    monkeypatch.setattr(BlobFile, "read_all", slowly)
    mirror: Mirror = await start()
    other = LATEST.replace(b"app", b"other")
    got = await ask(mirror, LATEST, other, answers=2)
    for _ in range(3):
        got += await ask(mirror, LATEST) + await ask(mirror, other)
    assert [body for _, _, body in got] == [images["app"].body, images["other"].body] * 4
    assert upstream.count("GET") == 2


@pytest.mark.parametrize(
    ("framing", "answers"),
    [(b"Content-Length: %d\r\n\r\n%s", 2), (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", 1)],
)
async def test_a_body_is_never_taken_for_a_request(mirror: Mirror, upstream: Scripted, framing: bytes, answers: int) -> None:
    """A body that spells a known request, sent by itself, is a body (RFC 9112, section 11.2: request smuggling). After a chunked one the connection is closed."""
    upstream.add_image("library/app", "latest")
    await ask(mirror, *[LATEST] * 2, answers=2)
    before = await mirror.metric("registry_proxy_requests_total")
    head, body = (framing % (len(LATEST), LATEST)).split(b"\r\n\r\n", 1)
    end = body.index(LATEST)
    parts = [LATEST[:-2] + head + b"\r\n\r\n" + body[:end], LATEST, body[end + len(LATEST) :], LATEST]
    got = await ask(mirror, *[part for part in parts if part], answers=answers)
    assert [status for status, _, _ in got] == [200] * answers
    assert await mirror.metric("registry_proxy_requests_total") - before == answers


async def test_a_connection_that_is_to_be_closed_is_closed(mirror: Mirror, upstream: Scripted) -> None:
    """``Connection: close`` is not for the shortest way, however often it comes."""
    upstream.add_image("library/app", "latest")
    closing = LATEST[:-2] + b"Connection: close\r\n\r\n"
    for _ in range(3):
        async with connection(mirror) as (reader, writer):
            writer.write(closing)
            assert (await answer(reader))[0] == 200
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_other_requests_on_the_same_connection_keep_their_own_answers(mirror: Mirror, upstream: Scripted) -> None:
    """HEAD and conditional requests, in between."""
    image = upstream.add_image("library/app", "latest")
    await ask(mirror, *[LATEST] * 2, answers=2)
    async with connection(mirror) as (reader, writer):
        for _ in range(3):
            writer.write(LATEST.replace(b"GET", b"HEAD"))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert f"Content-Length: {len(image.body)}".encode() in head
            writer.write(LATEST[:-2] + f'If-None-Match: "{image.digest}"\r\n\r\n'.encode())
            assert b" 304 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            writer.write(LATEST)
            assert (await answer(reader))[2] == image.body
