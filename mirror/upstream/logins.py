"""Checks the user and password of a client at the registry that they are for, as `docker login` does: with what the root of its API asks for."""

from __future__ import annotations

import asyncio

from yarl import URL

from mirror.errors import Denied, UpstreamFailed
from mirror.upstream.challenges import choose, parse_challenges
from mirror.upstream.guard import Guard
from mirror.upstream.tokens import Authenticator
from mirror.upstream.transport import source


async def check_login(registry: str, base: URL, guard: Guard, seconds: float) -> None:
    """Returns if the endpoint at `base` takes what the client has sent whom the task works for. Raises Denied if it does not; UpstreamError."""
    url = URL(f"{str(base).rstrip('/')}/v2/", encoded=True)
    until = asyncio.get_running_loop().time() + seconds
    authenticator = Authenticator(registry, None, clients=True)
    headers: dict[str, str] = {}
    try:
        while True:
            left = max(until - asyncio.get_running_loop().time(), 0.0)
            response = await guard.request("GET", (), url, headers, left, registry)
            response.release()
            if response.status >= 500 or response.status == 429:
                raise UpstreamFailed(f"{source(response)} answered {response.status}")
            if response.status not in (401, 403):
                return
            offered = choose(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
            if headers or offered is None:
                raise Denied(f"{registry} does not take this user and password")
            left = max(until - asyncio.get_running_loop().time(), 0.0)
            value, _ = await authenticator.header(offered, "", guard, [url], left)
            if offered.scheme != "basic":
                # It has given a token for them.
                return
            headers = {"Authorization": value}
    finally:
        await authenticator.aclose()
