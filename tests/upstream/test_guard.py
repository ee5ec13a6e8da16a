"""Where upstreams may send the mirror, and which addresses it connects to then."""

from __future__ import annotations

import socket
from typing import Any

import aiohappyeyeballs
import pytest
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from mirror.errors import TargetRefused, UpstreamInvalid, UpstreamUnreachable
from mirror.upstream.guard import Guard
from mirror.upstream.urls import may_get_credentials
from tests.support.raw import serving, transport

PUBLIC, INNER = "93.184.216.34", "127.0.0.1"
NAMES = {"both": [INNER, PUBLIC], "inner": [INNER], "public": [PUBLIC]}


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are connected to, which nothing answers at. `NAMES` resolve."""
    tried: list[str] = []

    async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=one, port=port, family=socket.AF_INET, proto=0, flags=0) for one in NAMES[host]]

    async def start_connection(addresses: list[Any], **_: Any) -> None:
        tried.extend(address[4][0] for address in addresses)
        raise OSError("nobody")

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    return tried


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:1"])
@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255"),
        *("2130706433", "0x7f.1", "127.1", "0177.0.0.1", "10.1"),
        *("[::1]", "[::]", "[fe80::1]", "[fe80::1%25eth0]", "[fd00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]"),
        # Ways to IPv4 addresses: mapped, compatible, translated (NAT64, local NAT64, SIIT), 6to4.
        *("[::ffff:127.0.0.1]", "[::7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::a00:1]", "[::ffff:0:a00:1]", "[2002:a00:1::]"),
    ],
)
async def test_a_public_upstream_may_not_send_us_to_a_private_address(
    monkeypatch: pytest.MonkeyPatch, host: str, proxy: str | None
) -> None:
    """However the address is written, and through a proxy too: refused before a byte is sent."""
    if proxy is not None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    async with transport() as way:
        guard = Guard(way, URL("http://8.8.8.8"), None)
        with pytest.raises(UpstreamInvalid, match="not public"):
            await guard.request("GET", [guard.base], URL(f"http://{host}:1/x"), {"Authorization": "secret"})


async def test_a_name_that_resolves_to_private_addresses_alone() -> None:
    """Judged by what it resolves to."""
    async with transport() as way:
        guard = Guard(way, URL("http://8.8.8.8"), None)
        with pytest.raises(TargetRefused, match="not public"):
            await guard.request("GET", [guard.base], URL("http://localhost:1/x"), {})


@pytest.mark.parametrize(
    ("base", "target"),
    [
        ("https://8.8.8.8", "http://8.8.8.8/x"),
        ("https://127.0.0.1:1", "http://127.0.0.1:1/x"),
        ("https://127.0.0.1:1", "http://[::1]:1/x"),
        ("http://127.0.0.1:1", "http://user:word@127.0.0.1:1/x"),
        ("http://127.0.0.1:1", "http://user@127.0.0.1:1/x"),
    ],
)
async def test_an_upstream_may_not_send_us_from_https_to_http(base: str, target: str) -> None:
    """Not even to the same host; nor to itself with a user and a password in the URL."""
    async with transport() as way:
        with pytest.raises(TargetRefused):
            await Guard(way, URL(base), None).request("GET", [URL(base)], URL(target), {})


@pytest.mark.parametrize(
    ("owner", "url", "may"),
    [
        ("https://r.lan/v2/", "https://r.lan:443/token", True),
        ("https://r.lan/v2/", "https://R.lan/token", True),
        ("http://r.lan/v2/", "https://r.lan/v2/", True),
        ("http://r.lan:80/v2/", "https://r.lan:443/v2/", True),
        ("https://r.lan/v2/", "http://r.lan/v2/", False),
        ("http://r.lan:5000/v2/", "https://r.lan:5000/v2/", False),
        ("http://r.lan/v2/", "https://r.lan:5000/v2/", False),
        ("https://r.lan/v2/", "https://r.lan:444/v2/", False),
        ("https://r.lan/v2/", "https://x.r.lan/v2/", False),
        ("https://r.lan/v2/", "https://lan/v2/", False),
        ("https://r.lan/v2/", "https://r.lan./v2/", False),
    ],
)
def test_who_may_get_credentials(owner: str, url: str, may: bool) -> None:
    """The origin that they are for, and the same host where it has gone from http to https; no other port, and no other name."""
    assert may_get_credentials(URL(owner), URL(url)) == may


@pytest.mark.parametrize(
    ("base", "via", "target", "connected"),
    [
        # The endpoint itself may have any address, and may point to itself.
        ("http://both", [], "http://both/v2/", [INNER, PUBLIC]),
        ("http://both", ["http://both/v2/"], "http://both/token", [INNER, PUBLIC]),
        ("http://inner", ["http://inner/v2/"], "http://inner:81/x", [INNER]),
        ("http://inner", ["http://inner/v2/"], "http://both/x", [INNER, PUBLIC]),
        ("http://inner", ["http://inner/v2/"], "http://public/x", [PUBLIC]),
        # One with a public address among its own may not lead inside, nor may a public host on the way.
        ("http://both", ["http://both/v2/"], "http://inner/x", []),
        ("http://both", ["http://both/v2/"], "http://both:81/x", [PUBLIC]),
        ("http://public", ["http://public/v2/"], "http://both/x", [PUBLIC]),
        ("http://public", ["http://public/v2/"], "http://inner/x", []),
        ("http://inner", ["http://inner/v2/", "http://public/x"], "http://inner:81/x", []),
        ("http://inner", ["http://inner/v2/", "http://public/x"], "http://inner/x", []),
        ("http://inner", ["http://inner/v2/", "http://both/x"], "http://both/y", [PUBLIC]),
    ],
)
async def test_addresses_are_judged_when_they_are_connected_to(
    connects: list[str], base: str, via: list[str], target: str, connected: list[str]
) -> None:
    """Of a name with several addresses only those that are allowed are tried, for redirects and token realms alike: none where none is."""
    async with transport() as way:
        with pytest.raises((UpstreamUnreachable, TargetRefused)) as raised:
            await Guard(way, URL(base), None).request("GET", [URL(one) for one in via], URL(target), {})
        assert connects == connected
        assert isinstance(raised.value, TargetRefused) == (not connected)


async def test_a_connection_that_was_allowed_is_not_lent_to_a_request_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection to an inner address serves those alone that may go there."""

    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server, transport() as way:
        (await Guard(way, server.url, None).request("GET", [], server.url, {})).release()
        with pytest.raises(TargetRefused):
            await Guard(way, URL("http://8.8.8.8"), None).request(
                "GET", [URL("http://8.8.8.8")], server.url.with_host("localhost"), {}
            )
        assert server.requests == 1


@pytest.mark.parametrize("way_out", [None, "http"])
async def test_a_name_that_is_not_ascii_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch, way_out: str | None) -> None:
    """What is resolved is what the Host field says, by IDNA 2008 (RFC 5891): by IDNA 2003, \"straße\" would be the host \"strasse\" of somebody else."""
    asked: list[str] = []

    async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        asked.append(host)
        raise OSError("nobody")

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    if way_out is not None:
        monkeypatch.setenv("HTTP_PROXY", "http://straße.example:1")
    async with transport() as way:
        guard = Guard(way, URL("http://8.8.8.8"), None)
        for url in ("http://straße.example:1/", "http://xn--strae-oqa.example:1/"):
            with pytest.raises(UpstreamUnreachable):
                await guard.request("GET", [], URL(url), {})
            await way.is_private(URL(url))
    assert asked and set(asked) == {"xn--strae-oqa.example"}
