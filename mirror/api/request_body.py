"""Reads the body of a request piece by piece, as fast as its reader takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from mirror.api.connection import Connection
from mirror.errors import RequestInvalid

_SILENCE = 60.0
"""Seconds without a byte after which a body has ended."""


def reader(request: web.BaseRequest) -> Callable[[], Awaitable[bytes]]:
    """Returns what reads the next bytes of a body: none at its end. A client that waits for that is asked for them at the first read. It raises what aiohttp raises."""
    connection = Connection.of(request)
    begun = False

    async def read() -> bytes:
        nonlocal begun
        if not begun:
            begun = True
            continue_(request)
        data = request.content.read_nowait()
        if connection is not None:
            connection.stream(not data)
        if not data:
            data = await request.content.readany()
        return data

    return read


def patient_reader(request: web.BaseRequest) -> Callable[[], Awaitable[bytes]]:
    """Like `reader`, but what it reads from ends after 60 s without a byte. Raises RequestInvalid then, and where the connection ends."""
    read = reader(request)

    async def timed() -> bytes:
        try:
            async with asyncio.timeout(_SILENCE):
                return await read()
        except TimeoutError:
            raise RequestInvalid(f"no bytes of the body came for {_SILENCE:g} s") from None
        except Exception as error:
            # Of aiohttp's classes, some are no OSErrors: a client that leaves, a body that is not framed as its header says.
            raise RequestInvalid(f"the body ended early: {error or type(error).__name__}") from None

    return timed


def continue_(request: web.BaseRequest) -> None:
    """Asks for the body of a request, if its client waits for that (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
