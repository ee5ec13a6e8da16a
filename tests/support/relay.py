"""A relay in front of a server that cuts answers in the middle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence


class CuttingRelay:
    """Passes connections on to a server, each request on one of its own. Answers to requests for `path` end after so many bytes, one after the other; then they come whole."""

    def __init__(
        self, port: int, path: str, cuts: Sequence[int], before_cut: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """`before_cut` is awaited each time that the client has what comes before a cut."""
        self._port = port
        self._path = path
        self._cuts = list(cuts)
        self._before_cut = before_cut
        self.heads: list[str] = []
        """The heads of the requests for `path`, in lower case."""

    async def __aenter__(self) -> CuttingRelay:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _pass_on(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await client.readuntil(b"\r\n\r\n")).decode()
            left = None
            if head.split(" ")[1].startswith(self._path):
                self.heads.append(head.lower())
                left = self._cuts.pop(0) if self._cuts else None
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(head.replace("\r\n", "\r\nConnection: close\r\n", 1).encode())
            with contextlib.closing(writer):
                while left != 0 and (data := await reader.read(65536 if left is None else min(left, 65536))):
                    back.write(data)
                    await back.drain()
                    left = None if left is None else left - len(data)
            if left == 0 and self._before_cut is not None:
                await self._before_cut()
        back.close()
