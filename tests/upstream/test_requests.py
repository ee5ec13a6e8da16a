"""Requests to upstream: redirects, realms, endpoints, retries, proxies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from mirror.errors import TargetRefused, UpstreamError
from mirror.upstream import proxies
from mirror.upstream import transport as transport_module
from mirror.upstream.guard import Guard
from mirror.upstream.health import Breaker
from mirror.upstream.transport import Connections, Timeouts, Transport
from tests.support.certificates import Authority
from tests.support.mirrors import Mirror, StartMirror
from tests.support.patience import PATIENCE
from tests.support.scripted import Cut, Delay, Fault, Headers, Raw, Redirect, Scripted, Silence, Status

LATEST = "/v2/app/manifests/latest"
MIB = 1024 * 1024


async def test_one_redirect_serves_many_ranges_and_an_expired_one_is_asked_for_again(mirror: Mirror, upstream: Scripted) -> None:
    """A resumed download goes back to the signed URL; when the store answers 403, the registry gives another."""
    data = os.urandom(3 * MIB)
    blob = upstream.add_blob(data)
    async with Scripted() as store:
        store.blobs = upstream.blobs
        upstream.redirect_blobs_to = store
        store.fail(str(blob), Cut(MIB), Cut(MIB // 2), Status(403))
        assert (await mirror.get(f"/v2/app/blobs/{blob}")).body == data
        assert store.count("GET") == 4
        assert upstream.count("GET", str(blob)) == 2


@pytest.mark.parametrize(
    "fails", ["cannot be reached", Silence(), Raw(b"no HTTP"), Raw(reset=True), Status(500), Status(404)], ids=str
)
async def test_a_redirect_to_a_store_that_fails_is_asked_for_again(
    mirror: Mirror, upstream: Scripted, fails: Fault | str
) -> None:
    """The registry may redirect to another store, and is asked at once, however the one before fails."""
    blob = upstream.add_blob(data := os.urandom(1000))
    async with Scripted() as before, Scripted() as now:
        before.blobs = now.blobs = upstream.blobs
        upstream.redirect_blobs_to = before
        assert (await mirror.head(f"/v2/app/blobs/{blob}")).status == 200
        upstream.redirect_blobs_to = now
        if isinstance(fails, Fault):
            before.fail(str(blob), fails, times=10)
        else:
            await before.stop()
        assert (await mirror.get(f"/v2/app/blobs/{blob}")).body == data
        assert upstream.count("GET") == 1
        assert now.count("GET") == 1


@pytest.mark.parametrize(
    "location",
    ["", "/v2/library/app/manifests/latest", "ftp://127.0.0.1/x", "http://user:pass@127.0.0.1:1/x", "http://[bad", "//", "?"],
)
async def test_redirects_that_lead_nowhere(mirror: Mirror, upstream: Scripted, location: str) -> None:
    """Circles, other schemes, user and password, nonsense: an error, and the process goes on."""
    upstream.add_image("library/app", "latest")
    upstream.fail("latest", Redirect(location), times=20)
    answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"pass@" not in answer.body
    upstream.heal()
    assert (await mirror.get(LATEST)).status == 200


async def test_signed_queries_are_not_shown(mirror: Mirror, upstream: Scripted) -> None:
    """What an error says of a redirect's target leaves out its query."""
    blob = upstream.add_blob(b"x" * 100)
    async with Scripted() as store:
        upstream.redirect_blobs_to = store
        store.fail(str(blob), Status(500), times=50)
        answer = await mirror.get(f"/v2/app/blobs/{blob}")
        assert answer.status == 503
        assert b"secret" not in answer.body


async def test_a_realm_is_checked_like_a_redirect(start: StartMirror, upstream: Scripted) -> None:
    """A token realm that is no web address gets no credentials."""
    upstream.auth, upstream.realm = "bearer", "ftp://127.0.0.1/token"
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(
        settings={"registries": {"docker.io": {"endpoints": [upstream.url], "username": "u", "password": "p"}}}
    )
    assert (await mirror.get(LATEST)).status == 503
    assert upstream.count("GET", "/token") == 0


async def test_endpoints_are_tried_in_order(start: StartMirror, upstream: Scripted) -> None:
    """A dead or failing one is passed over; a blob may come from any of them."""
    async with Scripted() as second:
        image = upstream.add_image("library/app", "latest")
        second.manifests, second.blobs = upstream.manifests, upstream.blobs
        mirror: Mirror = await start(endpoints=["http://127.0.0.1:1", upstream.url, second.url])
        assert (await mirror.get(LATEST)).body == image.body
        assert second.count("GET") == 0
        upstream.fail(str(image.config), Status(404))
        assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200
        assert second.count("GET", str(image.config)) == 1


async def test_a_tags_meaning_comes_from_the_first_endpoint_that_knows_it(start: StartMirror, upstream: Scripted) -> None:
    """The second, which may lag behind, is not asked."""
    async with Scripted() as second:
        image = upstream.add_image("library/app", "latest")
        second.add_image("library/app", "latest")
        mirror: Mirror = await start(endpoints=[upstream.url, second.url])
        assert (await mirror.get(LATEST)).body == image.body
        assert second.asked == []


async def test_transient_failures_are_retried_and_retry_after_is_honoured(mirror: Mirror, upstream: Scripted) -> None:
    """A 502 and a 429 that ends soon cost the client nothing but time."""
    image = upstream.add_image("library/app", "latest")
    upstream.fail("latest", Status(502))
    assert (await mirror.get(LATEST)).status == 200
    loop = asyncio.get_running_loop()
    began = loop.time()
    upstream.fail(str(image.config), Status(429, {"Retry-After": "1"}))
    assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 200
    assert loop.time() - began >= 1


async def test_a_long_retry_after_is_told_and_upstream_left_alone(mirror: Mirror, upstream: Scripted) -> None:
    """503, not 429, which containerd would repeat at once; with the time to wait."""
    upstream.add_image("library/app", "latest")
    upstream.fail("latest", Status(429, {"Retry-After": "200"}), times=20)
    answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"TOOMANYREQUESTS" in answer.body
    assert 190 <= int(answer.headers["Retry-After"]) <= 200
    assert (await mirror.get(LATEST)).status == 503
    assert upstream.count("GET") == 1


async def test_slow_headers_end_within_the_header_timeout(mirror: Mirror, upstream: Scripted) -> None:
    """An upstream that does not answer is no reason to hold a client for longer."""
    upstream.add_image("library/app", "latest")
    upstream.fail("latest", Delay(30), times=10)
    async with asyncio.timeout(PATIENCE):
        answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"in time" in answer.body


async def test_head_that_is_refused_or_says_too_little_becomes_get(mirror: Mirror, upstream: Scripted) -> None:
    """405, or no Docker-Content-Digest: the answer is the same."""
    image = upstream.add_image("library/app", "latest")
    for fault in (Status(405), Headers({"Docker-Content-Digest": None})):
        upstream.fail("manifests/", fault, method="HEAD")
        head = await mirror.head(f"/v2/app/manifests/{image.digest}" if isinstance(fault, Headers) else LATEST)
        assert head.headers["Docker-Content-Digest"] == str(image.digest)
    upstream.fail(str(image.config), Status(405), method="HEAD")
    head = await mirror.head(f"/v2/app/blobs/{image.config}")
    assert head.headers["Content-Length"] == str(len(upstream.blobs[str(image.config)]))


async def test_tags_and_referrers_follow_pages_and_the_tag_schema(start: StartMirror, upstream: Scripted) -> None:
    """All of a list, however upstream gives it."""
    image = upstream.add_image("library/app", "v1")
    for number in range(2, 8):
        upstream.add_image("library/app", f"v{number}")
    upstream.page_size = 2
    mirror: Mirror = await start()
    assert b'["v1", "v2", "v3", "v4", "v5", "v6", "v7"]' in (await mirror.get("/v2/app/tags/list")).body
    assert upstream.count("GET", "/tags/list") == 4
    upstream.referrers_api = False
    answer = await mirror.get(f"/v2/app/referrers/{image.digest}")
    assert answer.status == 200
    assert b'"manifests": []' in answer.body
    other = upstream.add_image("library/app", "other")
    upstream.add_index("library/app", f"sha256-{other.digest.hex}", [image])
    assert str(image.digest).encode() in (await mirror.get(f"/v2/app/referrers/{other.digest}")).body


async def test_rate_limits_are_seen_in_the_metrics(mirror: Mirror, upstream: Scripted) -> None:
    """Docker Hub's headers, with the window after a semicolon."""
    upstream.add_image("library/app", "latest")
    upstream.extra_headers = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}
    await mirror.get(LATEST)
    text = (await mirror.get("/metrics")).body.decode()
    endpoint = upstream.url.removeprefix("http://")
    assert f'mirror_upstream_ratelimit_remaining{{endpoint="{endpoint}",upstream_host="docker.io"}} 76.0' in text
    assert f'mirror_upstream_ratelimit_limit{{endpoint="{endpoint}",upstream_host="docker.io"}} 100.0' in text


def test_the_breaker() -> None:
    """Opens after three failures in a row; then one probe after 1 s, 2 s, 4 s … 60 s; one success closes it."""
    now = 0.0
    breaker = Breaker(lambda: now)
    for _ in range(2):
        breaker.failed("x")
        assert breaker.allows()
    breaker.failed("x")
    assert (breaker.state, breaker.allows()) == ("down", False)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        assert breaker.pause_left == pytest.approx(pause)
        now += pause - 0.01
        assert not breaker.allows()
        now += 0.02
        assert breaker.allows()
        assert not breaker.allows(), "one probe at a time"
        breaker.failed("x")
    now += 61
    assert breaker.allows()
    breaker.succeeded()
    assert (breaker.state, breaker.allows()) == ("ok", True)


async def test_a_proxy_from_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, upstream: Scripted, start: StartMirror
) -> None:
    """HTTP_PROXY and NO_PROXY mean what they always mean; redirects take the same way, though the proxy's own address is private."""
    monkeypatch.setenv("http_proxy", upstream.url)
    monkeypatch.setenv("no_proxy", "")
    upstream.add_image("library/app", "latest")
    mirror: Mirror = await start(endpoints=["http://registry.invalid"])
    upstream.fail("latest", Redirect("http://store.invalid/v2/library/app/manifests/latest"))
    assert (await mirror.get(LATEST)).status == 200
    assert upstream.count("GET", "latest") == 2


async def test_a_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream is not to be blamed for it, and the reason is the system's own."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    proxied = Transport(Timeouts(1, 1, 1, 1), Connections(1, 1, 1))
    try:
        with pytest.raises(
            UpstreamError,
            match=r"with http://registry\.invalid/: the proxy http://127\.0\.0\.1:1 \(HTTP_PROXY\): Connection refused",
        ):
            await proxied.request("GET", URL("http://registry.invalid/"), {})
    finally:
        await proxied.aclose()


async def test_a_host_without_an_address_is_told_in_words() -> None:
    """Without the numbers of the C library."""
    transport = Transport(Timeouts(2, 5, 1, 1), Connections(1, 1, 1))
    try:
        with pytest.raises(UpstreamError, match=r"^http://registry\.invalid/ cannot be resolved: [A-Z]"):
            await transport.request("GET", URL("http://registry.invalid/"), {})
    finally:
        await transport.aclose()


@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize("registry", ["https://registry.invalid", "http://registry.invalid"])
async def test_a_proxys_password_is_used_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, start: StartMirror, scheme: str, registry: str
) -> None:
    """It goes to the proxy; no client, page or metric ever sees it, whatever the proxy says."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    address = f"{scheme}robot:hunter2@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("no_proxy", "")
    mirror: Mirror = await start(endpoints=[registry])
    answer = await mirror.get(LATEST)
    assert answer.status == 503
    assert b"407" in answer.body
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"robot:hunter2") in heads[0]
    for page in (answer, await mirror.get("/readyz"), await mirror.get("/metrics")):
        assert b"hunter2" not in page.body
    proxy.close()
    await proxy.wait_closed()


async def test_what_aiohttp_raises_ends_at_the_transport(upstream: Scripted) -> None:
    """Refused connections, unknown hosts, and servers that speak no HTTP are errors of ours."""

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"SSH-2.0-whatever\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = Transport(Timeouts(1, 2, 1, 1), Connections(4, 8, 16))
    try:
        for url in ("http://127.0.0.1:1/", "http://name.invalid/", f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/"):
            with pytest.raises(UpstreamError):
                await transport.request("GET", URL(url), {})
    finally:
        await transport.aclose()
        server.close()
        await server.wait_closed()
    assert transport_module.shown(URL("https://u:p@h/x?sig=1#f")) == "https://h/x"


async def test_a_blob_comes_through_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's CONNECT carries the TLS of a blob's connection: one tunnel serves several requests."""
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.certificate, authority.key)
    asked: list[bytes] = []
    tasks: list[asyncio.Task[Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.extend(filter(None, [asyncio.current_task()]))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.extend(filter(None, [asyncio.current_task()]))
        asked.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        there_reader, there = await asyncio.open_connection("127.0.0.1", origin.sockets[0].getsockname()[1])
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()
            await sink.wait_closed()

        await asyncio.gather(copy(reader, there), copy(there_reader, writer))

    origin = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("no_proxy", "")
    transport = Transport(Timeouts(2, 5, 1, 1), Connections(1, 1, 1))
    trusting = ssl.create_default_context(cafile=authority.ca)
    trusting.check_hostname = False
    try:
        for _ in range(2):
            # The proxy is told a place that it does not look at: loopback would be reached without it.
            response = await transport.request("GET", URL("https://registry.invalid:4433/x"), {}, tls=trusting)
            body = await response.read(2)
            assert bytes(body) == b"hello"
            await response.aclose()
    finally:
        await transport.aclose()
        await asyncio.gather(*tasks)
        origin.close()
        proxy.close()
    assert asked == [b"CONNECT registry.invalid:4433 HTTP/1.1"]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_blob_comes_through_a_proxy_that_is_spoken_to_by_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Both for https registries, by TLS within TLS, and for http ones; bodies of many records come whole, and the connection is used again."""
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.certificate, authority.key)
    body = os.urandom(3_000_000)
    asked: list[bytes] = []
    tasks: list[asyncio.Task[Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.extend(filter(None, [asyncio.current_task()]))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.extend(filter(None, [asyncio.current_task()]))
        asked.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        there_reader, there = await asyncio.open_connection("127.0.0.1", origin.sockets[0].getsockname()[1])
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, there), copy(there_reader, writer))

    origin = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    proxy = await asyncio.start_server(tunnel if scheme == "https" else answer, "127.0.0.1", 0, ssl=tls)
    monkeypatch.setattr("mirror.upstream.dialing.system_tls", lambda: ssl.create_default_context(cafile=authority.ca))
    way = proxies.way(f"https://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", None, proxies.Fixed(None), "upstream.proxy")
    transport = Transport(Timeouts(2, 5, 1, 1), Connections(1, 1, 1), way)
    trusting = ssl.create_default_context(cafile=authority.ca)
    trusting.check_hostname = False
    try:
        for _ in range(2):
            response = await transport.request("GET", URL(f"{scheme}://registry.invalid:4433/x"), {}, tls=trusting)
            received = bytearray()
            while data := await response.read(2):
                received += data
            await response.aclose()
            assert received == body
    finally:
        await transport.aclose()
        await asyncio.gather(*tasks)
        origin.close()
        proxy.close()
    if scheme == "https":
        assert asked == [b"CONNECT registry.invalid:4433 HTTP/1.1", b"GET /x HTTP/1.1", b"GET /x HTTP/1.1"]
    else:
        assert asked == [b"GET http://registry.invalid:4433/x HTTP/1.1"] * 2


async def test_a_name_that_a_proxy_resolves_is_not_resolved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to connect, nor to judge a redirect; behind it ``localhost`` and internal addresses are refused from where the endpoint's name is not known."""
    looked_up: list[str] = []

    async def resolve(self: object, host: str, *_: object, **__: object) -> list[Any]:
        looked_up.append(host)
        return [{"host": host, "family": socket.AF_INET}]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    way = proxies.way("socks5h://127.0.0.1:1", None, proxies.Fixed(None), "upstream.proxy")
    transport = Transport(Timeouts(1, 2, 1, 1), Connections(1, 1, 1), way)
    guard = Guard(transport, URL("http://registry.lan"), None)
    try:
        for target in ("http://localhost/x", "http://a.localhost./x", "http://10.0.0.1/x"):
            with pytest.raises(TargetRefused, match="not public"):
                await guard.request("GET", [guard.base], URL(target), {})
        with pytest.raises(UpstreamError, match=r"the proxy socks5h://127\.0\.0\.1:1 \(upstream\.proxy\): Connection refused"):
            await guard.request("GET", [guard.base], URL("http://cdn.lan/x"), {})
    finally:
        await transport.aclose()
    assert set(looked_up) <= {"127.0.0.1"}, "the proxy's own"


async def test_an_endpoints_proxy_counts_before_the_registrys_and_that_before_all(start: StartMirror, upstream: Scripted) -> None:
    """Each way is seen by the proxy that the error names; ``none`` reaches upstream without one."""
    upstream.add_image("library/app", "latest")
    everywhere = {"upstream": {"proxy": "http://127.0.0.1:1"}}
    mirror = await start(settings=everywhere)
    assert b"the proxy http://127.0.0.1:1 (upstream.proxy): Connection refused" in (await mirror.get(LATEST)).body
    assert upstream.asked == []
    await mirror.stop()
    registry = {"docker.io": {"endpoints": [upstream.url], "proxy": "http://127.0.0.1:2"}}
    mirror = await start(settings={**everywhere, "registries": registry})
    assert b'the proxy http://127.0.0.1:2 (registries.\\"docker.io\\".proxy)' in (await mirror.get(LATEST)).body
    assert upstream.asked == []
    await mirror.stop()
    endpoint = {"docker.io": {"endpoints": [{"url": upstream.url, "proxy": "none"}], "proxy": "http://127.0.0.1:2"}}
    mirror = await start(settings={**everywhere, "registries": endpoint})
    assert (await mirror.get(LATEST)).status == 200
