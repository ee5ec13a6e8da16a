"""Proxies that are away, hang, lie, refuse or break off: the error names them and says what to do, and what does not need them goes on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.names import Digest
from tests.support.certificates import Authority
from tests.support.mirrors import Got, Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.proxying import Answers, Closes, Cuts, Endless, ProxyFault, ScriptedProxy, secured, server_tls
from tests.support.scripted import Image, Scripted

PAGE = b"Connection: close\r\nContent-Type: text/html\r\nContent-Length: 31\r\n\r\n<html>Access Denied</html>     "
TUNNEL = b"HTTP/1.1 200 Connection established\r\n\r\n"


def answer(status: str) -> Answers:
    return Answers((f"HTTP/1.1 {status}\r\n".encode() + PAGE,))


def reply(code: int, more: bytes = b"") -> Answers:
    """A SOCKS server that needs no password and gives this reply to the request (RFC 1928, section 6)."""
    return Answers((b"\5\0", bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]) + more), close=not more)


@dataclass(frozen=True)
class Case:
    """What a proxy does, what the error says of it, and how many connections one request makes: two, one for each attempt, unless the first takes all its time."""

    fault: ProxyFault | None
    """None: it is stopped."""
    message: str
    connections: int = 2
    status: int = 503


OWN = "check the proxy's own connection, or set another proxy"
RULES = "its rules forbid this host"
HTTP = {
    "stopped": Case(None, "Connection refused; check that it runs", 0),
    "closes": Case(Closes(), r"; is it an https? proxy\?"),
    "silent": Case(Answers(), f"no answer in 2 s; {OWN}"),
    "no HTTP": Case(Answers((b"SSH-2.0-OpenSSH\r\n\r\n",)), r"answered with something that is not HTTP; is it an https? proxy\?"),
    "502": Case(answer("502 Bad Gateway"), "answered 502 Bad Gateway; it cannot reach the host: check"),
    "503": Case(answer("503 Service Unavailable"), "answered 503 Service Unavailable; it cannot reach the host: check"),
    "403": Case(answer("403 Forbidden"), f"answered 403 Forbidden; {RULES}: allow the host there, or set another proxy"),
    "302": Case(answer("302 Found"), "answered 302 Found; is it a proxy, and may it make tunnels to this port"),
    "407": Case(
        answer("407 Who Are You"),
        "answered 407 Proxy Authentication Required; check the user and password in proxy_credentials_file",
    ),
    "drips": Case(Endless(b"H", b"T", 0.05), f"no answer in 2 s; {OWN}"),
    "endless fields": Case(Endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05), f"no answer in 2 s; {OWN}"),
    "huge head": Case(Endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n"), "is not HTTP"),
    "endless 100s": Case(Endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), f"no answer in 2 s; {OWN}"),
    "200, noise": Case(Answers((TUNNEL + b"noise\r\n\r\n",)), "made no clean tunnel: bytes followed its answer"),
    "200, late noise": Case(Answers((TUNNEL, b"noise\r\n\r\n")), "TLS.*; check that the proxy works and allows this host"),
    "200, nothing": Case(Answers((TUNNEL,)), "did not answer in time.*; check that the proxy works and allows this host", 1),
    "200, closes": Case(Answers((TUNNEL,), close=True), "TLS.*; check that the proxy works and allows this host"),
}
SOCKS = {
    "stopped": Case(None, "Connection refused; check that it runs", 0),
    "closes": Case(Closes(), r"is it a SOCKS5 proxy\?"),
    "silent": Case(Answers(), f"no answer in 2 s; {OWN}"),
    "silent later": Case(Answers((b"\5\0",)), f"no answer in 2 s; {OWN}"),
    "an HTTP proxy": Case(answer("400 Bad Request"), r"is it a SOCKS5 proxy\?"),
    "SOCKS4": Case(Answers((b"\0\x5b\0\0\0\0\0\0",), close=True), r"is it a SOCKS5 proxy\?"),
    "no method": Case(Answers((b"\5\xff",), close=True), "check the user and password in proxy_credentials_file"),
    "wants a password": Case(Answers((b"\5\2",)), "check the user and password in proxy_credentials_file"),
    "1": Case(reply(1), f"it cannot reach the host, or does not resolve its name; {OWN}"),
    "2": Case(reply(2), f"{RULES}; allow the host there, or set another proxy"),
    "3": Case(reply(3), f"it has no way to that network; {OWN}"),
    "4": Case(reply(4), f"it cannot reach the host; {OWN}"),
    "5": Case(reply(5), f"the host refused its connection; {OWN}"),
    "6": Case(reply(6), f"the host did not answer it in time; {OWN}"),
    "7": Case(reply(7), r"is it a SOCKS5 proxy\?"),
    "8": Case(reply(8), r"is it a SOCKS5 proxy\?"),
    "99": Case(reply(99), r"is it a SOCKS5 proxy\?"),
    "drips a name": Case(Endless(b"\5\0\0\3\xff", b"a", 0.1, (b"\5\0",)), f"no answer in 2 s; {OWN}"),
    "0, late noise": Case(reply(0, b"noise\r\n\r\n"), "TLS.*; check that the proxy works and allows this host"),
    "0, closes": Case(reply(0), "TLS.*; check that the proxy works and allows this host"),
}
FORWARDING = {
    "stopped": Case(None, "Connection refused; check that it runs", 0),
    "closes": Case(Closes(), "gave no answer.*; check that the proxy works and allows this host"),
    "silent": Case(Answers(), "did not answer in time.*; check that the proxy works and allows this host", 1),
    "no HTTP": Case(Answers((b"SSH-2.0-OpenSSH\r\n\r\n",)), "not HTTP.*; check that the proxy works and allows this host", 1),
    "502": Case(answer("502 Bad Gateway"), "answered 502"),
    "403": Case(answer("403 Forbidden"), "answered 403 with a web page", 1, 403),
    "407": Case(
        answer("407 Who Are You"),
        "answered 407 Proxy Authentication Required; check the user and password in proxy_credentials_file",
    ),
}
"""By HTTP without a tunnel, where most answers may be the registry's own."""
ROWS = [
    *(("http", True, name) for name in HTTP),
    *(("https", True, name) for name in HTTP),
    *(("socks5h", True, name) for name in SOCKS),
    *(("socks5", True, name) for name in ("closes", "silent", "1", "2")),
    *(("http", False, name) for name in FORWARDING),
]


@dataclass
class Place:
    """A registry behind TLS or not, which `proxy` leads to."""

    proxy: ScriptedProxy
    url: str
    settings: dict[str, Any]


@pytest.fixture
async def place(
    request: pytest.FixtureRequest, upstream: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    """Its parameter: the kind of the proxy, and whether the registry is an https one."""
    kind, tls = request.param
    authority = Authority(tmp_path / "authority")
    # An https proxy's certificate is checked against the system's.
    monkeypatch.setattr("mirror.upstream.dialing.system_tls", lambda: ssl.create_default_context(cafile=authority.ca))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(secured(upstream, authority)) if tls else upstream.url
        proxy = await stack.enter_async_context(ScriptedProxy(kind, server_tls(authority)))
        yield Place(proxy, url, {"proxy": proxy.url, "ca_file": str(authority.ca)})


def behind(place: Place, *more: dict[str, Any], connect_timeout: float = 10, header_timeout: float = 60) -> dict[str, Any]:
    """The settings of a mirror whose first endpoint is behind the proxy; `more` are further endpoints.

    Timeouts are short only where a test waits for them: elsewhere a busy machine would look like a proxy that does not answer.
    """
    own = {"url": place.url, "proxy": place.settings["proxy"]}
    registry = {"endpoints": [own, *more], "ca_file": place.settings["ca_file"]}
    upstream = {"connect_timeout": connect_timeout, "header_timeout": header_timeout, "stall_timeout": PATIENCE}
    return {"registries": {"docker.io": registry}, "upstream": upstream}


def message_of(got: Got) -> str:
    return str(json.loads(got.body)["errors"][0]["message"])


async def break_down(proxy: ScriptedProxy, fault: ProxyFault | None) -> None:
    """The proxy drops its connections, and commits the fault on every new one."""
    if fault is None:
        await proxy.stop()
    else:
        proxy.fail(fault)
        await proxy.drop()


async def until_served(mirror: Mirror, path: str) -> Got:
    """Asks until it is answered: an endpoint that failed is paused for a second or more."""
    async with asyncio.timeout(PATIENCE):
        while (got := await mirror.get(path)).status != 200:
            await asyncio.sleep(0.05)
    return got


@pytest.mark.parametrize(
    ("place", "name"),
    [pytest.param((kind, tls), name, id=f"{kind}, {'tunnel' if tls else 'plain'}, {name}") for kind, tls, name in ROWS],
    indirect=["place"],
)
async def test_a_proxy_that_fails_is_named_with_what_to_do(
    place: Place, name: str, start: StartMirror, upstream: Scripted
) -> None:
    """One request makes a connection for each attempt, and none to the registry. What is cached is served stale. Once the proxy is well, so is the registry."""
    proxy = place.proxy
    cases = SOCKS if proxy.kind.startswith("socks") else HTTP if place.url.startswith("https:") else FORWARDING
    case = cases[name]
    cached, other = upstream.add_image("library/app", "cached"), upstream.add_image("library/app", "other", layers=[b"other"])
    times: dict[str, float] = {}
    if "no answer in 2 s" in case.message:
        times["connect_timeout"] = 1
    if "did not answer in time" in case.message:
        times["header_timeout"] = 4
    mirror: Mirror = await start(settings=behind(place, **times), tag_ttl=0)
    await until_served(mirror, "/v2/app/manifests/cached")
    assert proxy.connections == 1 or times
    await break_down(proxy, case.fault)
    before, asked = proxy.connections, len(upstream.asked)
    got = await mirror.get("/v2/app/manifests/other")
    assert (got.status, proxy.connections - before) == (case.status, case.connections), message_of(got)
    assert f'the proxy {proxy.url} (registries."docker.io".endpoints.proxy)' in message_of(got)
    assert re.search(case.message, message_of(got)), message_of(got)
    got = await mirror.get("/v2/app/manifests/cached")
    assert (got.status, got.body) == (200, cached.body)
    assert len(upstream.asked) == asked
    if case.fault is None:
        await proxy.start()
    proxy.heal()
    assert (await until_served(mirror, "/v2/app/manifests/other")).body == other.body
    assert len(proxy.targets) >= 2


def pull_paths(image: Image) -> list[str]:
    return ["manifests/1", f"manifests/{image.digest}", *(f"blobs/{digest}" for digest in (image.config, *image.layers))]


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        (("http", True), None),
        (("http", True), Answers()),
        (("https", True), answer("407 Who Are You")),
        (("http", False), answer("502 Bad Gateway")),
        (("http", False), answer("403 Forbidden")),
        (("socks5h", True), reply(2)),
        (("socks5h", False), Answers((b"\5\0",))),
        (("socks5", False), Closes()),
    ],
    indirect=["place"],
)
@pytest.mark.parametrize("other", ["none", "another proxy"])
async def test_the_next_endpoint_is_asked_and_not_blamed(
    place: Place, fault: ProxyFault | None, other: str, start: StartMirror, upstream: Scripted
) -> None:
    """Whether it needs another proxy or none: manifests and blobs come from there, and it counts as well; nothing goes to the first registry."""
    async with Scripted() as second, ScriptedProxy("socks5h") as another:
        image = second.add_image("library/app", "1", layers=[os.urandom(100_000)])
        way = "none" if other == "none" else another.url
        silent = isinstance(fault, Answers) and not fault.close
        settings = behind(place, {"url": second.url, "proxy": way}, connect_timeout=1 if silent else 10)
        mirror: Mirror = await start(settings=settings)
        await break_down(place.proxy, fault)
        for path in pull_paths(image):
            assert (await mirror.get(f"/v2/app/{path}")).status == 200
        assert upstream.asked == []
        assert (another.connections > 0) == (other != "none")
        endpoints = json.loads((await mirror.get("/readyz")).body)["registries"]["docker.io"]
        assert endpoints[1]["state"] == "ok"
        assert second.count("GET", str(image.layers[0])) == 1


WAYS = [("http", True), ("http", False), ("https", True), ("socks5", False), ("socks5h", True)]
SIZE, CUT = 3_000_000, 1_000_000


def ranges(upstream: Scripted, blob: Digest) -> list[int]:
    """The offsets that a blob was asked for from."""
    asked = [one.range for one in upstream.asked if one.method == "GET" and str(blob) in one.path]
    return [0 if one is None else int(one.removeprefix("bytes=").partition("-")[0]) for one in asked]


@pytest.mark.parametrize("place", WAYS, indirect=True, ids=str)
async def test_a_body_that_a_proxy_cuts_is_resumed_through_new_connections(
    place: Place, start: StartMirror, upstream: Scripted
) -> None:
    """By Range from where it was cut, as often as it is: one connection for each piece, and no byte is fetched that had come."""
    data = os.urandom(SIZE)
    blob = upstream.add_blob(data)
    settings = behind(place)
    settings["upstream"]["connections_per_blob"] = 1
    mirror: Mirror = await start(settings=settings)
    place.proxy.fail(Cuts(CUT))
    got = await mirror.get(f"/v2/app/blobs/{blob}")
    assert (got.status, got.cut, got.body == data) == (200, False, True)
    assert place.proxy.connections == 4
    offsets = ranges(upstream, blob)
    assert offsets == sorted(set(offsets))
    assert len(offsets) == 4
    # Heads and handshakes count too, and of a TLS record that is cut nothing is known.
    assert all(number * (CUT - 40_000) < offset <= number * CUT for number, offset in enumerate(offsets[1:], 1))


@pytest.mark.parametrize("place", WAYS, indirect=True, ids=str)
async def test_a_proxy_that_wants_a_password_later_delays_a_body_or_hands_it_over(
    place: Place, start: StartMirror, upstream: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """The first connection works and is cut, all later ones are refused. Once: the rest comes through the third. For good: the rest comes from the next
    endpoint, or the client is cut off and the log names the proxy; when the proxy is well again, only the rest is fetched."""
    caplog.set_level("INFO")
    refusal = Answers((b"\5\2",)) if place.proxy.kind.startswith("socks") else answer("407 Who Are You")
    once, handed, kept = (os.urandom(SIZE) for _ in range(3))
    blobs = [upstream.add_blob(data) for data in (once, handed, kept)]
    settings = behind(place)
    settings["upstream"]["connections_per_blob"] = 1
    mirror: Mirror = await start(settings=settings)
    place.proxy.heal(Cuts(CUT), refusal)
    got = await mirror.get(f"/v2/app/blobs/{blobs[0]}")
    assert (got.cut, got.body == once, place.proxy.connections) == (False, True, 3)
    assert len(ranges(upstream, blobs[0])) == 2

    await place.proxy.drop()
    place.proxy.fail(refusal, Cuts(CUT))
    got = await mirror.get(f"/v2/app/blobs/{blobs[2]}")
    assert (got.cut, got.body == kept[: len(got.body)]) == (True, True)
    assert f"the proxy {place.proxy.url} (registries" in caplog.text
    assert "check the user and password" in caplog.text
    assert len(ranges(upstream, blobs[2])) == 1
    place.proxy.heal()
    got = await until_served(mirror, f"/v2/app/blobs/{blobs[2]}")
    assert (got.cut, got.body == kept) == (False, True)
    first, *later = ranges(upstream, blobs[2])
    assert (first, all(offset > CUT - 40_000 for offset in later), len(later)) == (0, True, 1)
    await mirror.stop()

    async with Scripted() as second:
        second.add_blob(handed)
        await place.proxy.drop()
        place.proxy.fail(refusal, Cuts(CUT))
        mirror = await start(
            Path(mirror.directory).with_name("two"),
            settings={**behind(place, {"url": second.url, "proxy": "none"}), "upstream": settings["upstream"]},
        )
        got = await mirror.get(f"/v2/app/blobs/{blobs[1]}")
        assert (got.cut, got.body == handed) == (False, True)
        assert ranges(upstream, blobs[1]) == [0]
        (offset,) = ranges(second, blobs[1])
        assert CUT - 40_000 < offset <= CUT
