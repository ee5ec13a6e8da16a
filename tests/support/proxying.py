"""A proxy that commits faults on demand and counts its connections, and TLS in front of a scripted registry."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from yarl import URL

from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.scripted import Scripted

Kind = Literal["http", "https", "socks5", "socks5h"]
_PIECE = 64 * 1024


@dataclass(frozen=True)
class Closes:
    """The connection is closed at once."""


@dataclass(frozen=True)
class Answers:
    """Each message of the client is answered with the next of these; after them nothing comes, or with `close` the connection ends."""

    answers: tuple[bytes, ...] = ()
    close: bool = False


@dataclass(frozen=True)
class Endless:
    """After the `answers` and the `first` bytes, `again` is sent again and again, with so many `seconds` in between."""

    first: bytes
    again: bytes
    seconds: float = 0.0
    answers: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Cuts:
    """The way to the registry is cut once so many bytes came from there."""

    after: int


ProxyFault = Closes | Answers | Endless | Cuts


class ScriptedProxy:
    """A proxy on a loopback port. Whatever host is asked for, it connects to 127.0.0.1."""

    def __init__(self, kind: Kind, tls: ssl.SSLContext | None = None, account: tuple[str, str] | None = None) -> None:
        """`tls` is for the kind ``https``; `account`: user and password that it asks for."""
        self.kind = kind
        self.connections = 0
        self.targets: list[tuple[str, int]] = []
        """Hosts and ports to which it made connections."""
        self.account = account
        self._tls = tls if kind == "https" else None
        self._fault: ProxyFault | None = None
        self._next: list[ProxyFault | None] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = free_port()

    async def __aenter__(self) -> ScriptedProxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"{self.kind}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens, on the same port whenever it is started again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)

    async def stop(self) -> None:
        """Refuses connections, and drops those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop()

    async def drop(self) -> None:
        """Drops all open connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail(self, fault: ProxyFault, *before: ProxyFault | None) -> None:
        """Commits a fault on every connection from now on, after one connection with each of those `before`; None for one without."""
        self._fault, self._next = fault, list(before)

    def heal(self, *before: ProxyFault | None) -> None:
        """Commits none from now on, after one connection with each of those `before`."""
        self._fault, self._next = None, list(before)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        fault = self._next.pop(0) if self._next else self._fault
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._behave(fault, reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _behave(self, fault: ProxyFault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match fault:
            case Closes():
                return
            case Answers():
                for answer in fault.answers:
                    if not await reader.read(_PIECE):
                        return
                    writer.write(answer)
                    await writer.drain()
                if fault.close:
                    # Not a reset, which could overtake the answer.
                    writer.close()
                    await writer.wait_closed()
                    return
                while await reader.read(_PIECE):
                    pass
            case Endless():
                for answer in (*fault.answers, fault.first):
                    if not await reader.read(_PIECE):
                        return
                    writer.write(answer)
                while True:
                    writer.write(fault.again)
                    await writer.drain()
                    await asyncio.sleep(fault.seconds)
            case _:
                await self._pass(fault, reader, writer)

    async def _pass(self, fault: Cuts | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await (self._by_socks(reader, writer) if self.kind.startswith("socks") else self._by_http(reader, writer))
        if asked is None:
            return
        host, port, first, answer = asked
        self.targets.append((host, port))
        there_reader, there = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(answer)
            there.write(first)
            await _both_ways(reader, writer, there_reader, there, None if fault is None else fault.after)
        finally:
            there.transport.abort()

    async def _by_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int, bytes, bytes] | None:
        """Returns the host and port that are asked for, what to send there first, and the answer to the client."""
        head = await reader.readuntil(b"\r\n\r\n")
        if self.account is not None:
            wanted = base64.b64encode(":".join(self.account).encode())
            if b"\r\nProxy-Authorization: Basic " + wanted + b"\r\n" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return None
        method, target, _ = head.split(b" ", 2)
        if method == b"CONNECT":
            host, _, port = target.decode().rpartition(":")
            return host, int(port), b"", b"HTTP/1.1 200 Connection established\r\n\r\n"
        url = URL(target.decode())
        # The scripted registry takes whole URLs as targets.
        return url.host or "", url.port or 80, head, b""

    async def _by_socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int, bytes, bytes] | None:
        """The same by RFC 1928 and RFC 1929."""
        methods = (await reader.readexactly(2))[1]
        await reader.readexactly(methods)
        writer.write(b"\5\2" if self.account is not None else b"\5\0")
        if self.account is not None:
            given = []
            await reader.readexactly(1)
            for _ in range(2):
                given.append((await reader.readexactly((await reader.readexactly(1))[0])).decode())
            right = tuple(given) == self.account
            writer.write(b"\1\0" if right else b"\1\1")
            if not right:
                await writer.drain()
                return None
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(map(str, await reader.readexactly(4)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        return host, port, b"", b"\5\0\0\1\0\0\0\0\0\0"


async def _both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    there_reader: asyncio.StreamReader,
    there: asyncio.StreamWriter,
    most: int | None = None,
) -> None:
    """Copies until one side ends, or `most` bytes came from there."""

    async def forth() -> None:
        while data := await reader.read(_PIECE):
            there.write(data)
            await there.drain()

    async def back() -> None:
        count = 0
        while (most is None or count < most) and (data := await there_reader.read(_PIECE)):
            data = data if most is None else data[: most - count]
            count += len(data)
            writer.write(data)
            await writer.drain()
        # Not a reset, which could overtake the bytes.
        writer.close()
        await writer.wait_closed()

    copying = [asyncio.create_task(forth()), asyncio.create_task(back())]
    try:
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)


def server_tls(authority: Authority) -> ssl.SSLContext:
    """A server's context with the authority's certificate for 127.0.0.1."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.certificate, authority.key)
    return tls


@contextlib.asynccontextmanager
async def secured(upstream: Scripted, authority: Authority) -> AsyncIterator[str]:
    """The https URL of a registry, with the authority's certificate for 127.0.0.1."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there_reader, there = await asyncio.open_connection("127.0.0.1", upstream.port)
            try:
                await _both_ways(reader, writer, there_reader, there)
            finally:
                there.transport.abort()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls(authority))
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
