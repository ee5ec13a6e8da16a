"""What tests of the dashboard ask and send."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from mirror.web.token import NAME
from tests.support.mirrors import Mirror

HTML = {"Accept": "text/html,application/xhtml+xml"}


IMAGE = "/image/docker.io/library/app:1"


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


PAGES = (
    "/",
    "/images",
    IMAGE,
    "/class",
    "/guards",
    "/class?q=none",
    "/setup",
    "/setup?client=k3s",
    "/login",
    "/?q=none",
    "/search",
    "/search?q=app",
    "/search?q=ghcr.io/none",
    "/repository/docker.io/library/app?view=tags",
    "/nothing",
    "/image/docker.io/library/none:1",
)


def token(mirror: Mirror) -> str:
    return (mirror.directory / NAME).read_text().strip()


async def post(mirror: Mirror, path: str, form: dict[str, str], **headers: str) -> tuple[int, str, Any]:
    """Status, body, headers; header names have underscores for hyphens."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with mirror.session.post(path, data=form, headers=sent, allow_redirects=False) as response:
        return response.status, await response.text(), response.headers


async def log_in(mirror: Mirror) -> str:
    """A session, as its cookie."""
    status, _, headers = await post(mirror, "/login", {"token": token(mirror), "to": IMAGE}, **HTML)
    assert (status, headers["Location"]) == (303, IMAGE)
    return str(headers["Set-Cookie"].partition(";")[0])


async def pinned(mirror: Mirror) -> bool:
    return "badge accent" in (await mirror.get(IMAGE, **HTML)).body.decode()


async def events(session: aiohttp.ClientSession) -> AsyncIterator[dict[str, str]]:
    """What /events sends, message by message."""
    async with session.get("/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
