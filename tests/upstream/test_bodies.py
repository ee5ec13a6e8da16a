"""The bodies of blobs, received in threads: from a server that does with its connections what it likes, over plain HTTP and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from mirror.config import Endpoint, Registry
from mirror.errors import MirrorError, UpstreamCut, UpstreamStalled
from mirror.names import Digest, Repository
from mirror.upstream import Connections, Timeouts, Upstreams
from mirror.upstream.receiver import BUFFER, Receiver, Response
from mirror.upstream.streams import BlobStream
from tests.support.certificates import Authority
from tests.support.mirrors import until

REPOSITORY = Repository("docker.io", "library/app")
DIGEST = Digest.of(b"")
MIB = 1024 * 1024


@dataclass
class Server:
    """Answers every request with `head` and `body`, and does `then`."""

    tls: ssl.SSLContext | None
    head: str = ""
    body: bytes = b""
    then: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    connections: int = 0
    sent: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def answer(self, body: bytes, head: str | None = None) -> None:
        self.body = body
        self.head = f"Content-Length: {len(body)}\r\n" if head is None else head

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(f"HTTP/1.1 200 OK\r\n{self.head}\r\n".encode())
                    for start in range(0, len(self.body), 65536):
                        writer.write(self.body[start : start + 65536])
                        await writer.drain()
                        self.sent += len(self.body[start : start + 65536])
                    if self.then is not None:
                        await self.then(writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture(params=["http", "https"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Server, Upstreams]]:
    """With a mirror's way to it."""
    authority = Authority(tmp_path)
    tls = None
    if request.param == "https":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(authority.certificate, authority.key)
    running = Server(tls)
    listening = await asyncio.start_server(running.serve, "127.0.0.1", 0, ssl=tls)
    host, port = listening.sockets[0].getsockname()

    registry = Registry(endpoints=(Endpoint(url=f"{request.param}://{host}:{port}"),), ca_file=authority.ca)
    async with Upstreams({"docker.io": registry}, Timeouts(2, 4, 0.5, 1), Connections(4, 4, 4)) as upstreams:
        yield running, upstreams
    listening.close()
    await running.aclose()


async def opened(upstreams: Upstreams) -> BlobStream:
    stream = await upstreams.registry("docker.io").blob(REPOSITORY, DIGEST).open()
    assert isinstance(stream, BlobStream)
    return stream


async def read_all(stream: BlobStream) -> bytes:
    body = bytearray()
    while data := await stream.read():
        body += data
    await stream.aclose()
    return bytes(body)


async def read_until(error: type[MirrorError], stream: BlobStream) -> bytes:
    """What comes before an error that must come."""
    body = bytearray()
    try:
        while data := await stream.read():
            body += data
    except error:
        return bytes(body)
    raise AssertionError(f"the body ended without {error.__name__}")


async def test_bodies_of_every_size_come_whole_over_one_connection(server: tuple[Server, Upstreams]) -> None:
    """Below, at and above a buffer's size, several times: byte for byte, and the connection serves the next request."""
    running, upstreams = server
    for size in (1, 1000, 65536, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER, 5 * BUFFER + 12345, 1):
        running.answer(os.urandom(size))
        assert await read_all(await opened(upstreams)) == running.body
    assert running.connections == 1


async def test_a_body_that_came_with_its_head_needs_no_other_thread(
    server: tuple[Server, Upstreams], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small blob or document is read where it is, whole or in pieces, and the connection serves the next request."""
    running, upstreams = server
    # One write: the blank line after the fields, and the body up to the line end that the server adds.
    running.answer(b"", "Content-Length: 5\r\n\r\nhel")
    for wanted in (1, 2, 5, 1000):
        stream, body = await opened(upstreams), bytearray()
        with monkeypatch.context() as patched:
            patched.setattr(Receiver, "start", None)
            while len(body) < 5:
                body += await stream.read(min(wanted, 5 - len(body)))
        assert bytes(body) == b"hel\r\n"
        await stream.aclose()
    assert running.connections == 1


async def test_no_more_is_received_than_is_wanted(server: tuple[Server, Upstreams]) -> None:
    """The caller says how many bytes it will read: the rest stays with the sender, as far as the kernel's buffers allow."""
    running, upstreams = server
    running.answer(os.urandom(64 * MIB))
    stream = await opened(upstreams)
    wanted, body = 3 * MIB + 1, bytearray()
    while len(body) < wanted:
        piece = await stream.read(wanted - len(body))
        body.extend(piece)
    assert bytes(body) == running.body[:wanted]
    await stream.aclose()


async def test_bodies_share_the_memory(server: tuple[Server, Upstreams]) -> None:
    """Many at once hold 16 MiB of unread bytes together, not two whole buffers each, and all of them come whole."""
    running, upstreams = server
    running.answer(os.urandom(4 * MIB))
    streams = [await opened(upstreams) for _ in range(40)]
    bodies = [bytearray() for _ in streams]
    for _ in range(3):
        # What is received while the caller reads was asked for before the others were there.
        for stream, body in zip(streams, bodies, strict=True):
            piece = await stream.read()
            body.extend(piece)
    for stream, body in zip(streams, bodies, strict=True):
        piece = await stream.read()
        assert len(piece) <= max(16 * MIB // (2 * len(streams)), MIB // 4)
        body.extend(piece)
    for stream, body in zip(streams, bodies, strict=True):
        assert bytes(body) + await read_all(stream) == running.body


async def test_a_reader_that_takes_its_time_holds_the_sender_up(server: tuple[Server, Upstreams]) -> None:
    """What comes is bounded by the buffers, ours and the kernel's, until it is read; then all of it is there, in order."""
    running, upstreams = server
    running.answer(os.urandom(64 * MIB))
    stream = await opened(upstreams)
    first = bytes(await stream.read())
    seen = -1
    while seen != running.sent:
        seen = running.sent
        await asyncio.sleep(0.2)
    assert seen < 32 * MIB
    assert first + await read_all(stream) == running.body


async def test_what_was_read_stays_as_it_is_until_the_next_read(server: tuple[Server, Upstreams]) -> None:
    """However much comes meanwhile."""
    running, upstreams = server
    running.answer(os.urandom(8 * MIB))
    stream, position = await opened(upstreams), 0
    while data := await stream.read():
        await asyncio.sleep(0.01)
        assert data == running.body[position : position + len(data)]
        position += len(data)
    await stream.aclose()
    assert position == len(running.body)


@pytest.mark.parametrize("size", [1000, 300_000, 3 * MIB])
async def test_a_connection_that_breaks_off_gives_what_came_before(server: tuple[Server, Upstreams], size: int) -> None:
    """Every byte ahead of the break, then UpstreamCut, again and again; and the next request has a connection of its own."""
    running, upstreams = server

    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    running.answer(os.urandom(size), f"Content-Length: {size + 1}\r\n")
    running.then = hang_up
    stream = await opened(upstreams)
    assert await read_until(UpstreamCut, stream) == running.body
    with pytest.raises(UpstreamCut):
        await stream.read()
    await stream.aclose()
    running.then = None
    running.answer(b"whole")
    assert await read_all(await opened(upstreams)) == b"whole"
    assert running.connections == 2


async def test_a_body_that_stalls_goes_on_after_the_error_or_is_left(server: tuple[Server, Upstreams]) -> None:
    """UpstreamStalled after the timeout, with nothing lost before it; its connection is not used again."""
    running, upstreams = server
    running.answer(os.urandom(2 * MIB), f"Content-Length: {2 * MIB + 1}\r\n")
    stream = await opened(upstreams)
    assert await read_until(UpstreamStalled, stream) == running.body
    await stream.aclose()
    running.answer(b"whole")
    assert await read_all(await opened(upstreams)) == b"whole"
    assert running.connections == 2


async def test_bytes_that_wait_in_the_kernel_are_no_stall() -> None:
    """A machine that is too busy to read, or was asleep, does not take its own silence for the server's."""

    class Late:
        """A connection of which a thread reads only when it has been found twice that bytes are there."""

        key, complete, buffered, reusable, looks = "late", True, False, True, 0
        filling: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        @property
        def has_received(self) -> bool:
            self.looks += 1
            if self.looks == 2:
                self.filling.set_result(3)
            return True

    class Receiving:
        def take_buffers(self) -> list[memoryview]:
            return [memoryview(bytearray(b"abcdef")) for _ in range(2)]

        def start(self, connection: Late, _: memoryview) -> asyncio.Future[int]:
            return connection.filling

        def give_back(self, *_: object) -> None:
            pass

    late = Late()
    response = Response(
        URL("http://r.example"), 200, CIMultiDictProxy(CIMultiDict()), cast("Any", late), cast("Any", Receiving())
    )
    assert bytes(await response.read(0)) == b"abc"
    assert late.looks == 2
    await response.aclose()


async def test_a_body_that_is_left_midway_harms_nobody(server: tuple[Server, Upstreams]) -> None:
    """Closed while more comes: its connection is closed, and the memory is free for others."""
    running, upstreams = server
    for _ in range(5):
        running.answer(os.urandom(20 * MIB))
        stream = await opened(upstreams)
        await stream.read()
        await stream.aclose()
        running.answer(os.urandom(2 * MIB))
        assert await read_all(await opened(upstreams)) == running.body
    await until(lambda: len(running._tasks) <= 1)


async def test_bytes_after_a_body_are_no_part_of_it_nor_of_the_next(server: tuple[Server, Upstreams]) -> None:
    """What a server sends beyond the length that it said is thrown away with the connection."""
    running, upstreams = server
    size = 2 * MIB - 1000
    running.answer(os.urandom(size) + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", f"Content-Length: {size}\r\n")
    for _ in range(3):
        assert await read_all(await opened(upstreams)) == running.body[:size]
    assert running.connections == 3


async def test_a_body_in_chunks_is_read_whole(server: tuple[Server, Upstreams]) -> None:
    """Without a length there is something to parse."""
    running, upstreams = server
    body = os.urandom(3 * MIB)
    running.answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked\r\n")
    assert await read_all(await opened(upstreams)) == body
    assert await read_all(await opened(upstreams)) == body
    assert running.connections == 1
