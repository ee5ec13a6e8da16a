"""Upstreams that cannot be resolved, reached, trusted or pulled from, and a clock that is wrong."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mirror.clients import runs_systemd
from mirror.config import load
from mirror.doctor import Finding, upstreams
from mirror.doctor.findings import Level
from tests.doctor.conftest import of, one, settings
from tests.support.certificates import Authority
from tests.support.programs import DockerRegistry
from tests.support.scripted import Scripted, Status
from tests.support.tokens import TokenService

LAN = "lan.example:5000"


async def test_a_registry_that_is_well(tree: dict[str, Any], upstream: Scripted) -> None:
    """Says how fast it answers, and that the clock is right; the others are told with a cure."""
    found = await upstreams.examine(settings(tree, lan={"endpoints": [upstream.url]}))
    told = one(found, LAN)
    assert told.level == Level.OK
    assert "open to anybody" in told.message
    assert one(found, "clock").level == Level.OK
    refused = one(found, "quay.io")
    assert refused.level == Level.PROBLEM
    assert "127.0.0.1:1" in refused.message
    assert "curl -v http://127.0.0.1:1/v2/" in refused.cure


async def test_a_name_that_cannot_be_resolved(tree: dict[str, Any]) -> None:
    """Is named, with where to look."""
    told = one(await upstreams.examine(settings(tree, lan={"endpoints": ["https://registry.invalid"]})), LAN)
    assert told.level == Level.PROBLEM
    assert "registry.invalid cannot be resolved" in told.message
    assert "/etc/resolv.conf" in told.cure


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45, "s behind"), (600, "10 minutes behind"), (31717444, "367 days behind"), (-7400, "2 hours ahead of")],
)
async def test_a_clock_that_is_wrong(tree: dict[str, Any], upstream: Scripted, seconds: float, words: str) -> None:
    """By which side and how much, in a unit to be read, when all upstreams say so; one registry's own wrong clock is not ours."""
    upstream.extra_headers = {"Date": formatdate(time.time() + seconds, usegmt=True)}
    told = one(await upstreams.examine(settings(tree, lan={"endpoints": [upstream.url]})), "clock")
    assert told.level == Level.PROBLEM
    assert f"{words} upstream's" in told.message
    assert ("set-ntp" if runs_systemd() else "chrony") in told.cure
    async with Scripted() as right:
        found = await upstreams.examine(settings(tree, lan={"endpoints": [upstream.url, right.url]}))
        assert one(found, "clock").level == Level.OK


@pytest.mark.parametrize("date", ["yesterday", f"Mon, 01 Jan {10**20} 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2300"])
async def test_a_date_that_no_clock_has_ends_nothing(tree: dict[str, Any], upstream: Scripted, date: str) -> None:
    """A registry may say anything: the others are looked at, and their word on this machine's clock counts."""
    upstream.extra_headers = {"Date": date}
    async with Scripted() as right:
        found = await upstreams.examine(settings(tree, lan={"endpoints": [upstream.url, right.url]}))
        assert one(found, "clock").level == Level.OK


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[tuple[Authority, str]]:
    """A registry behind TLS, whose certificate nobody knows."""
    authority = Authority(tmp_path / "tls")

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.json_response({})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield authority, f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_certificate_of_an_authority_that_nobody_knows(tree: dict[str, Any], secured: tuple[Authority, str]) -> None:
    """Is refused, and the cure makes it work: ca_file."""
    authority, url = secured
    told = one(await upstreams.examine(settings(tree, lan={"endpoints": [url]})), LAN)
    assert told.level == Level.PROBLEM
    assert "certificate verify failed" in told.message
    assert "ca_file" in told.cure
    told = one(await upstreams.examine(settings(tree, lan={"endpoints": [url], "ca_file": str(authority.ca)})), LAN)
    assert told.level == Level.OK


async def test_credentials_that_a_real_registry_takes_or_not(tree: dict[str, Any], tmp_path: Path) -> None:
    """Asked for as a pull does, of its token service; the password is shown nowhere. Without any, it is said that there are none."""
    tokens = TokenService(tmp_path / "tokens", {"robot": "s3cret"})
    registry = await asyncio.to_thread(DockerRegistry, tmp_path / "registry", tokens.settings)
    try:

        async def told(**account: str) -> Finding:
            return one(await upstreams.examine(settings(tree, lan={"endpoints": [registry.url], **account})), LAN)

        well = await told(username="robot", password="s3cret")
        assert (well.level, "with credentials" in well.message) == (Level.OK, True)
        wrong = await told(username="robot", password="hunter2")
        assert wrong.level == Level.PROBLEM
        assert f'username and password_file under [registries."{LAN}"]' in wrong.cure
        assert "hunter2" not in wrong.message + wrong.cure
        assert "without credentials" in (await told()).message
    finally:
        registry.stop()
        tokens.stop()


async def test_basic_credentials_that_are_wrong(tree: dict[str, Any], upstream: Scripted) -> None:
    """The registry's own refusal, told the same way."""
    upstream.auth, upstream.accounts = "basic", {"robot": "s3cret"}
    registry = {"endpoints": [upstream.url], "username": "robot", "password": "hunter2"}
    told = one(await upstreams.examine(settings(tree, lan=registry)), LAN)
    assert told.level == Level.PROBLEM
    assert "answered 401 to the credentials" in told.message


@pytest.mark.parametrize(("left", "level"), [("60", Level.OK), ("3", Level.PROBLEM)])
async def test_what_docker_hub_still_allows(tree: dict[str, Any], upstream: Scripted, left: str, level: Level) -> None:
    """Asked for with HEAD, which is not counted; nearly spent, it is a problem that credentials mend."""
    upstream.add_image("ratelimitpreview/test", "latest")
    upstream.extra_headers = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": f"{left};w=21600"}
    found = of(await upstreams.examine(settings(tree, hub={"endpoints": [upstream.url]})), "docker.io")
    told = found[-1]
    assert f"{left} of 100 pulls are left" in told.message
    assert told.level == level
    assert ("username and password_file" in told.cure) == (level == Level.PROBLEM)
    assert upstream.count("GET", "/manifests/") == 0


async def test_docker_hub_without_the_preview_says_nothing_of_a_limit(tree: dict[str, Any], upstream: Scripted) -> None:
    """A mirror of Docker Hub need not have that image, nor a limit."""
    assert one(await upstreams.examine(settings(tree, hub={"endpoints": [upstream.url]})), "docker.io").level == Level.OK


async def test_an_address_that_is_no_registrys(tree: dict[str, Any], upstream: Scripted) -> None:
    """A portal's answer, say."""
    upstream.fail("/v2/", Status(511))
    told = one(await upstreams.examine(settings(tree, lan={"endpoints": [upstream.url]})), LAN)
    assert told.level == Level.PROBLEM
    assert "answered 511" in told.message


async def test_an_upstream_that_never_answers_is_waited_for_no_longer_than_others(tree: dict[str, Any]) -> None:
    """All are asked at once, and each has its time."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    told = one(await upstreams.examine(settings(tree, lan={"endpoints": [f"http://127.0.0.1:{port}"]})), LAN)
    assert told.level == Level.PROBLEM
    assert "did not answer in time" in told.message
    server.close()
    await server.wait_closed()


async def test_offline_nothing_is_checked(upstream: Scripted) -> None:
    """One finding says that the mirror is offline; no registry is asked."""
    tree = {"upstream": {"offline": True}, "registries": {"docker.io": {"endpoints": [upstream.url]}}}
    (finding,) = await upstreams.examine(load(None, {}, tree))
    assert (finding.level, finding.message.partition(" (")[0]) == (Level.OK, "offline")
    assert upstream.asked == []


async def test_a_web_page_is_no_registry(tree: dict[str, Any], upstream: Scripted) -> None:
    """A portal answers 200 to everything. Quay's root is a word that is called HTML, and is well."""
    html = {"Content-Type": "text/html; charset=utf-8"}
    for body, level in ((b" <!doctype html><html>log in</html>", Level.PROBLEM), (b"true", Level.OK)):
        upstream.fail("/v2/", Status(200, html, body))
        told = one(await upstreams.examine(settings(tree, lan={"endpoints": [upstream.url]})), LAN)
        assert told.level == level
        assert ("with a web page" in told.message) == (level == Level.PROBLEM)
