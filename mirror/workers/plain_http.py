"""Answers plain HTTP requests on the HTTPS port with an error in plain HTTP."""

from __future__ import annotations

import asyncio
import json
import socket

_HANDSHAKE = 0x16
"""The first byte of a TLS connection: a record of the handshake (RFC 8446, section 5.1)."""
_TIMEOUT = 60.0
"""Seconds to wait for the first byte."""
_BODY = json.dumps(
    {"errors": [{"code": "UNSUPPORTED", "message": "this port speaks HTTPS: use https://, not http://", "detail": None}]}
).encode()
_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
    len(_BODY),
    _BODY,
)


async def speaks_tls(connection: socket.socket) -> bool:
    """Returns whether a connection begins with a TLS handshake, or ends without a byte. Consumes nothing. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await readable.wait()
    finally:
        loop.remove_reader(connection)
    first = connection.recv(1, socket.MSG_PEEK)
    return not first or first[0] == _HANDSHAKE


async def refuse(connection: socket.socket) -> None:
    """Sends 400 with an error that names HTTPS, and closes the connection. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    with connection:
        # Closing a socket with unread data resets the connection, and the client would lose the response.
        await asyncio.wait_for(loop.sock_recv(connection, 64 * 1024), _TIMEOUT)
        await asyncio.wait_for(loop.sock_sendall(connection, _ANSWER), _TIMEOUT)
