"""Bounds the memory of response bodies that clients have not read yet, for each client and in all.

Blobs go from their file to the socket and are never held. Lists, manifests and pages are made in memory: up to 32 MiB each, for as long as the client takes to
read them. Equal bodies are held once, however many clients read them. A request whose body has no room drops it, waits, and makes it again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import web

from mirror.api.client_network import client_network
from mirror.errors import ClientBusy

LARGE = 64 * 1024
"""Bytes of a body from which it is counted, and sent in pieces."""
_PER_CLIENT = 64 * 1024 * 1024
_IN_ALL = 256 * 1024 * 1024
_LONGEST_WAIT = 30.0
"""Seconds that a request waits for room: as long as containerd waits for headers."""


class UnreadBodies:
    """Counts the bytes of bodies until they are sent."""

    def __init__(self, per_client: int = _PER_CLIENT, in_all: int = _IN_ALL, longest_wait: float = _LONGEST_WAIT) -> None:
        """The bounds are in bytes; one body may exceed them where nothing else is held."""
        self._per_client = per_client
        self._in_all = in_all
        self._longest_wait = longest_wait
        self._bodies: dict[bytes, bytes] = {}
        """Each body that is held; its key is equal to it, and is the same object."""
        self._holders: Counter[bytes] = Counter()
        self._held_by: Counter[tuple[str, bytes]] = Counter()
        self._bytes_of: Counter[str] = Counter()
        self._total = 0
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    @property
    def total(self) -> int:
        """Bytes that are held or reserved."""
        return self._total

    def hold(self, remote: str | None) -> Hold:
        """For one request from an address; `release` must be called."""
        return Hold(self, client_network(remote))

    def take(self, client: str, body: bytes, reserved: int = 0) -> bytes | None:
        """Counts a body for a client, in place of the bytes that were reserved for it.

        Returns it, or the equal one that is held already; None where there is no room: then nothing is counted, and nothing reserved.
        """
        self._add(client, -reserved, -reserved)
        of_all = 0 if body in self._bodies else len(body)
        of_client = 0 if self._held_by[client, body] else len(body)
        if not self._fits(client, of_client, of_all):
            self._grant()
            return None
        body = self._bodies.setdefault(body, body)
        self._holders[body] += 1
        self._held_by[client, body] += 1
        self._add(client, of_client, of_all)
        self._grant()
        return body

    def give_back(self, client: str, body: bytes) -> None:
        """Ends what `take` began."""
        self._held_by[client, body] -= 1
        self._holders[body] -= 1
        of_client = of_all = 0
        if not self._held_by[client, body]:
            del self._held_by[client, body]
            of_client = len(body)
        if not self._holders[body]:
            del self._holders[body], self._bodies[body]
            of_all = len(body)
        self._remove(client, of_client, of_all)

    async def reserve(self, client: str, size: int) -> None:
        """Waits, in the order of the calls, until there is room for a body of `size` bytes, and counts it. Raises ClientBusy after `longest_wait`."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = client, size, granted
        self._waiting.append(entry)
        self._grant()
        try:
            async with asyncio.timeout(self._longest_wait):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():
                self.unreserve(client, size)
            if not isinstance(error, TimeoutError):
                raise
            raise ClientBusy(
                f"clients at this address have not read {self._bytes_of[client]} bytes of earlier answers, all clients {self._total}:"
                f" this one of {size} bytes waited {self._longest_wait:g} s for room"
            ) from None
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def unreserve(self, client: str, size: int) -> None:
        """Ends what `reserve` began."""
        self._remove(client, size, size)

    def _fits(self, client: str, of_client: int, of_all: int) -> bool:
        mine = self._bytes_of[client]
        return (not mine or not of_client or mine + of_client <= self._per_client) and (
            not self._total or not of_all or self._total + of_all <= self._in_all
        )

    def _add(self, client: str, of_client: int, of_all: int) -> None:
        self._bytes_of[client] += of_client
        self._total += of_all
        if not self._bytes_of[client]:
            del self._bytes_of[client]

    def _remove(self, client: str, of_client: int, of_all: int) -> None:
        self._add(client, -of_client, -of_all)
        self._grant()

    def _grant(self) -> None:
        for client, size, granted in self._waiting:
            if not granted.done() and self._fits(client, size, size):
                self._add(client, size, size)
                granted.set_result(None)


class Hold:
    """The body of one request's response."""

    def __init__(self, bodies: UnreadBodies, client: str) -> None:
        self._bodies = bodies
        self._client = client
        self._body: bytes | None = None

    async def keep(self, make: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """The response that `make` returns, with its body counted until `release`. Where there is no room, `make` is called again once there is.

        Raises ClientBusy, and what `make` raises.
        """
        response, reserved = await make(), 0
        while (body := large_body(response)) is not None:
            if (held := self._bodies.take(self._client, body, reserved)) is not None:
                self._body = held
                if isinstance(response, web.Response):
                    response.body = held
                return response
            reserved = len(body)
            del response, body
            await self._bodies.reserve(self._client, reserved)
            try:
                response = await make()
            except BaseException:
                self._bodies.unreserve(self._client, reserved)
                raise
        if reserved:
            self._bodies.unreserve(self._client, reserved)
        return response

    def release(self) -> None:
        """Ends the counting, also where nothing was kept."""
        if self._body is not None:
            self._bodies.give_back(self._client, self._body)
            self._body = None


def large_body(response: web.StreamResponse) -> bytes | None:
    """The body of a response that was made in memory and has at least `LARGE` bytes."""
    body = response.body if isinstance(response, web.Response) else None
    return body if isinstance(body, bytes) and len(body) >= LARGE else None
