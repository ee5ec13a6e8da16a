"""A receiver of webhooks: a real HTTP server that remembers what it was sent, and answers as a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.support.mirrors import until
from tests.support.ports import free_port


@dataclass(frozen=True)
class Post:
    """One request."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.body)["events"]
        return found


@dataclass
class Receiver:
    """``async with Receiver() as receiver``. While `statuses` has some, they are its next answers; then `status`."""

    status: int = 200
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    """Of its answers."""
    port: int = field(default_factory=free_port)
    posts: list[Post] = field(default_factory=list)
    """All that it was sent."""
    taken: list[dict[str, Any]] = field(default_factory=list)
    """The events that it has said 2xx to."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """It answers while this is set."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/s3cr3t-path"

    async def __aenter__(self) -> Self:
        self.open.set()
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        post = Post(request.headers, await request.read())
        self.posts.append(post)
        await self.open.wait()
        status = self.statuses.pop(0) if self.statuses else self.status
        if 200 <= status < 300:
            self.taken += post.events
        return web.Response(status=status, headers=self.headers)

    def of(self, action: str) -> list[dict[str, Any]]:
        """The events of an action that it has taken."""
        return [event for event in self.taken if event["action"] == action]

    async def until_taken(self, count: int, action: str | None = None) -> list[dict[str, Any]]:
        """Waits for so many events; returns all there are."""
        await until(lambda: len(self.taken if action is None else self.of(action)) >= count)
        return self.taken if action is None else self.of(action)


def is_signed(post: Post, secret: bytes) -> bool:
    """Checks a signature as GitHub's documentation tells receivers to ("Validating webhook deliveries")."""
    expected = "sha256=" + hmac.new(secret, post.body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, post.headers.get("X-Hub-Signature-256", ""))
