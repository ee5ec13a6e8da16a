"""HTTP that is unusual, or none at all: each request is answered rightly or refused, and what follows on the connection is not mistaken."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mirror.api import connection as connection_module
from mirror.api.connection import Connection, PendingRequests
from tests.api.test_connection import Inner, Known, Transport
from tests.api.test_shortcuts import LATEST
from tests.support.mirrors import Mirror, StartMirror, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

HOST = b"Host: 127.0.0.1\r\n"
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: m\r\n\r\n"
LOGIN = b"POST /login HTTP/1.1\r\n" + HOST


def fields(count: int, size: int) -> bytes:
    return b"".join(b"X-%d: %s\r\n" % (number, b"a" * size) for number in range(count))


def base(rest: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET /v2/ HTTP/" + version + b"\r\n" + HOST + rest + b"\r\n"


async def exchange(mirror: Mirror, sent: bytes, answers: int) -> tuple[list[int], bytes, bool]:
    """Sends bytes, then, after so many answers, a request to see whether the connection goes on; the statuses before its answer, all that came, and whether it went on."""
    host, port = mirror.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    went_on = True
    try:
        writer.write(sent)
        # What comes after the end of a connection in the same packet is another matter.
        async with asyncio.timeout(PATIENCE):
            while received.count(b"HTTP/1.") < answers and (data := await reader.read(65536)):
                received += data
        await asyncio.sleep(0.05)
        writer.write(ALIVE)
        async with asyncio.timeout(PATIENCE):
            while b'{"status":"alive"}' not in received:
                data = await reader.read(65536)
                if not data:
                    went_on = False
                    break
                received += data
    except ConnectionError:
        went_on = False
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    statuses = [int(part[2:5]) for part in received.split(b"HTTP/1.")[1:]]
    return statuses[:-1] if went_on else statuses, received, went_on


CASES: list[tuple[bytes, list[int], bool]] = [
    (base(version=b"1.0"), [200], False),
    (b"GET /v2/ HTTP/1.0\r\n\r\n", [200], False),
    (base(b"Connection: keep-alive\r\n", b"1.0"), [200], True),
    (base(b"Connection: close\r\n"), [200], False),
    (base() * 3, [200] * 3, True),
    (base() + LATEST + base(), [200, 404, 200], True),
    (b"\r\n\r\n" + base(), [200], True),
    (base(b"Content-Length: 5\r\n") + b"hello", [200], True),
    (base(b"Content-Length: 5\r\n") + b"hello" + base(), [200, 200], True),
    (base(b"Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n", [200], False),
    (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n7\r\ntoken=x\r\n0\r\n\r\n", [401], False),
    (LOGIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\ntoken=x\r\n0\r\n\r\n", [400], False),
    (LOGIN + b"Content-Length: 7\r\n\r\ntoken=x", [401], True),
    (LOGIN + b"Expect: 100-continue\r\nContent-Length: 7\r\n\r\ntoken=x", [100, 401], True),
    (base(b"Expect: something\r\n"), [200], True),
    (b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", [405], True),
    (LOGIN + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [400], False),
    (LOGIN + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", [400], False),
    (LOGIN + b"Content-Length: -1\r\n\r\n", [400], False),
    (base(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), [200], True),
    (base(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), [200], True),
    (base(b"Connection: Upgrade\r\nUpgrade: websocket\r\n") + base(), [200, 200], True),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], False),
    (b"CONNECT m:443 HTTP/1.1\r\n" + HOST + b"\r\n", [400], False),
    (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [400], True),
    (b"OPTIONS /v2/ HTTP/1.1\r\n" + HOST + b"\r\n", [405], True),
    (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", [405], True),
    (b"GET http://127.0.0.1/v2/ HTTP/1.1\r\n" + HOST + b"\r\n", [200], True),
    (b"GET http://127.0.0.1 HTTP/1.1\r\n" + HOST + b"\r\n", [200], True),
    (b"GET http://127.0.0.1?q=x HTTP/1.1\r\n" + HOST + b"\r\n", [200], True),
    (b"GET HTTPS://127.0.0.1/v2/ HTTP/1.1\r\n" + HOST + b"\r\n", [200], True),
    (b"GET ftp://127.0.0.1/v2/ HTTP/1.1\r\n" + HOST + b"\r\n", [400], True),
    (b"GET /v2/ HTTP/1.1\r\n\r\n", [400], False),
    (b"GET /v2/ HTTP/1.1\r\nHost: m\r\nHost: m\r\n\r\n", [400], False),
    (base(b"X: a\r\n b\r\n"), [400], False),
    (base(b"X: a\0b\r\n"), [400], False),
    (base(b"X : a\r\n"), [400], False),
    (b"GET /v2/\0 HTTP/1.1\r\n" + HOST + b"\r\n", [400], False),
    (b"GET /v2/ HTTP/1.1\nHost: m\n\n", [400], False),
    (base(b"Cookie: \xff\xfe=\xff\r\nAccept-Language: \xff\r\n"), [200], True),
    (base(b"Authorization: Bearer " + b"a" * 8192 + b"\r\n" + fields(110, 1)), [200], True),
    (base(fields(1, 30_000)), [200], True),
    (base(fields(1, 33_000)), [400], False),
    (base(fields(250, 1)), [400], False),
    (base(fields(9, 8000)), [431], False),
    (base(fields(9, 8000))[:-2], [431], False),
]
"""What is sent, the statuses of its answers, and whether the connection goes on."""


async def test_odd_requests(mirror: Mirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered or refused as the table has it; upstream hears of nothing but a manifest that was asked for."""
    monkeypatch.setattr(connection_module, "_LAST_WORDS", 0.2)
    found = []
    for sent, statuses, _ in CASES:
        got, received, went_on = await exchange(mirror, sent, len(statuses))
        found.append((sent, got, went_on))
        if statuses == [431]:
            assert b"65536 bytes together" in received
        if statuses == [400] and len(sent) > 300:
            assert b"may have 32768 bytes, and there may be 200 header fields" in received
    assert found == CASES
    assert {asked.path for asked in upstream.asked} <= {"/v2/library/app/manifests/latest"}


async def test_requests_in_pieces(mirror: Mirror) -> None:
    """A head that is split over packets, anywhere, is a head; so is a body in chunks."""
    chunked = LOGIN + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    host, port = mirror.url.removeprefix("http://").split(":")
    for sent, status in ((base() * 2, b"200"), (chunked, b"401")):
        for step in (1, 7, 64):
            reader, writer = await asyncio.open_connection(host, int(port))
            for start in range(0, len(sent), step):
                writer.write(sent[start : start + step])
                await asyncio.sleep(0)
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE))[9:12] == status
            writer.close()
            await writer.wait_closed()


class Pausing(Transport):
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.aborted = False
        self.closing = False
        self.unread = 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.unread

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True


def connected(held: PendingRequests) -> tuple[Connection, Pausing, Inner]:
    inner, transport = Inner(), Pausing()
    connection = Connection(inner, Known(), held)
    connection.connection_made(transport)
    return connection, transport, inner


async def test_what_is_sent_behind_a_request_that_is_being_answered_waits_in_the_kernel() -> None:
    """However much a client pipelines behind a slow answer: reading stops at 64 KiB."""
    connection, transport, _ = connected(PendingRequests())
    connection.data_received(base())
    assert transport.reading
    connection.data_received(base() * 2000)
    assert not transport.reading


async def test_heads_that_do_not_end_are_bounded_on_all_connections() -> None:
    """From the bound on, no connection may have more than 16 KiB; small requests go on, and what connections held is free when they are lost."""
    held = PendingRequests(per_client=100_000)
    opened = [connected(held) for _ in range(4)]
    for connection, _, _ in opened[:3]:
        connection.data_received(base()[:-2] + fields(4, 8000))
    assert [transport.written[:12] for _, transport, _ in opened[:3]] == [b"", b"", b""]
    connection, transport, inner = opened[3]
    connection.data_received(base()[:-2] + fields(4, 8000))
    assert transport.written.startswith(b"HTTP/1.1 503 ")
    connection.data_received(base())
    assert inner.seen == []
    small, transport, inner = connected(held)
    small.data_received(base())
    assert (inner.seen, transport.written) == ([base()], b"")
    for connection in (*(one[0] for one in opened), small):
        connection.connection_lost(None)
    assert held.total == 0


async def test_a_client_that_reads_nothing_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was written: as long as the transport holds as many bytes as before while nobody writes. One that reads, or has all, stays."""
    connection, transport, _ = connected(PendingRequests())
    transport.unread = 1000
    connection.pause_writing()
    connection.end_if_stuck(0)
    connection.end_if_stuck(299)
    transport.unread = 999
    connection.end_if_stuck(300)
    connection.end_if_stuck(599)
    connection.resume_writing()
    connection.pause_writing()
    connection.end_if_stuck(600)
    connection.end_if_stuck(899)
    assert not transport.aborted
    connection.end_if_stuck(900)
    assert transport.aborted
    connection, transport, _ = connected(PendingRequests())
    transport.unread = 1000
    connection.end_if_stuck(0)
    connection.end_if_stuck(1000)
    assert not transport.aborted
    transport.close()
    connection.end_if_stuck(1001)
    connection.end_if_stuck(1301)
    assert transport.aborted


async def test_stuck_connections_are_looked_for(
    start: StartMirror, upstream: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a mirror as it runs: who asks for lists and reads none of them is gone, without having left by itself."""
    monkeypatch.setattr(connection_module, "_STUCK_AFTER", 0.1)
    monkeypatch.setattr(connection_module, "_CHECK_INTERVAL", 0.02)
    mirror = await start()
    caplog.set_level("INFO")
    upstream.manifests |= {("library/one", f"{number:0100d}"): ("", b"") for number in range(120_000)}
    _, writer = await mirror.slow_reader("/v2/one/tags/list")
    await until(lambda: "its connection is ended" in caplog.text)
    writer.close()
