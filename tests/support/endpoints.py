"""Ten endpoints of one registry, of which one is good: what a list of public mirrors looks like after some months."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from tests.support.scripted import Corrupt, Delay, Redirect, Scripted, Status

_ALWAYS = 1000
_HTML = {"Content-Type": "text/html; charset=utf-8"}


@dataclass(frozen=True)
class Fleet:
    """Its endpoints by what is wrong with them; `urls` in the order in which they are configured, the good one ninth."""

    good: Scripted
    bad: dict[str, Scripted]
    urls: list[str]

    def asked(self) -> dict[str, int]:
        """Returns how many requests each bad endpoint that listens has got."""
        return {name: len(endpoint.asked) for name, endpoint in self.bad.items()}


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a port that neither accepts nor refuses connections: its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        names = ("slow", "html", "allow-list", "wrong", "limited", "login", "stale")
        bad = {name: await stack.enter_async_context(Scripted()) for name in names}
        good = await stack.enter_async_context(Scripted())
        hole = stack.enter_context(black_hole())
        faults = {
            "slow": Delay(3),
            "html": Status(200, _HTML, b"<html><body>Buy our proxies!</body></html>"),
            "allow-list": Status(403, _HTML, b"<html>not in the whitelist</html>"),
            "limited": Status(429, {"Retry-After": "3600"}, json.dumps({"errors": [{"code": "TOOMANYREQUESTS"}]}).encode()),
            "login": Redirect("/login", 302),
        }
        for name, fault in faults.items():
            bad[name].fail("/v2/", fault, times=_ALWAYS, method="*")
        bad["login"].fail("/login", Status(200, _HTML, b"<html>log in</html>"), times=_ALWAYS, method="*")
        bad["wrong"].fail("/v2/", Corrupt(0), times=_ALWAYS, method="*")
        order = ["slow", "html", "allow-list", "wrong", "limited", "login"]
        urls = ["http://127.0.0.1:1", hole, *(bad[name].url for name in order), good.url, bad["stale"].url]
        yield Fleet(good, bad, urls)
