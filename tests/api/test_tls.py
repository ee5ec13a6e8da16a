"""TLS of the mirror's own: wrong files are told by their key, a new certificate counts without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.api.shortcuts import Shortcuts
from mirror.clients import Address
from mirror.config import ConfigError, Settings, load
from mirror.doctor import Level
from mirror.doctor.local import examine_mirror
from tests.support.certificates import Authority
from tests.support.mirrors import StartMirror, until
from tests.support.scripted import Hold, Scripted

MIB = 1024 * 1024


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


def settings(authority: Authority) -> dict[str, Any]:
    return {"tls_certificate": str(authority.certificate), "tls_key": str(authority.key)}


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


def shown_serial(url: str, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, port = url.removeprefix("https://").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        shown = secure.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


def fault(server: dict[str, Any]) -> str:
    """The only fault of these settings."""
    with pytest.raises(ConfigError) as raised:
        load(None, {}, {"server": server})
    (line,) = raised.value.faults
    return line


def test_every_wrong_pair_is_refused_by_its_key(authority: Authority, tmp_path: Path) -> None:
    """One without the other, no files, no PEM, another's key, an encrypted key: at the start, saying what to do; and no terminal is asked for a password."""
    pair = settings(authority)
    assert load(None, {}, {"server": pair}).server.own_url == "https://127.0.0.1:5000"
    for name in pair:
        assert "server.tls_key" in (line := fault({name: pair[name]}))
        assert "belong together" in line
    junk, other = tmp_path / "junk", Authority(tmp_path / "other")
    junk.write_text("junk")
    absent = str(tmp_path / "absent")
    for wrong, told in (
        ({"tls_certificate": absent}, f"the file {absent} cannot be read: No such file"),
        ({"tls_key": absent}, f"the file {absent} cannot be read: No such file"),
        ({"tls_certificate": str(junk)}, f"the file {junk} holds no certificate in PEM"),
        ({"tls_key": str(junk)}, f"the file {junk} holds no private key in PEM"),
        ({"tls_key": str(other.key)}, f"the key in {other.key} is not that of the certificate in {authority.certificate}"),
    ):
        assert told in fault({**pair, **wrong})
    junk.write_text("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
    assert "cannot be used" in fault({**pair, "tls_certificate": str(junk)})
    authority.issue(password=b"secret")
    assert "is encrypted" in (line := fault(pair))
    assert "openssl pkey" in line


async def test_a_new_certificate_counts_from_the_next_connection_on(
    start: StartMirror, upstream: Scripted, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGHUP takes it at once; a download that is under way goes on over its old connection; a broken pair is logged, and the old one stays."""
    data = os.urandom(4 * MIB)
    blob = upstream.add_blob(data)
    hold = Hold(MIB)
    upstream.fail(str(blob), hold)
    caplog.set_level("INFO")
    mirror = await start(settings={"server": settings(authority)})
    assert mirror.url.startswith("https://")
    context = trusting(authority)
    assert await asyncio.to_thread(shown_serial, mirror.url, context) == authority.serial
    async with mirror.session.get(f"/v2/app/blobs/{blob}", ssl=context) as response:
        begun = await response.content.readexactly(1000)
        await hold.reached.wait()
        second = authority.issue()
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "loaded a new TLS certificate" in caplog.text)
        assert await asyncio.to_thread(shown_serial, mirror.url, context) == second
        authority.certificate.write_text("no certificate")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "the previous one stays" in caplog.text)
        assert await asyncio.to_thread(shown_serial, mirror.url, context) == second
        hold.release.set()
        assert begun + await response.read() == data


async def test_files_that_change_are_noticed_by_themselves(
    start: StartMirror, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As certbot and Kubernetes change them: nobody needs to tell the mirror."""
    monkeypatch.setattr("mirror.certificate._INTERVAL", 0.01)
    mirror = await start(settings={"server": settings(authority)})
    context = trusting(authority)
    second = authority.issue()
    for _ in range(500):
        if await asyncio.to_thread(shown_serial, mirror.url, context) == second:
            break
    else:
        pytest.fail("the old certificate stayed")


async def test_what_does_not_speak_tls_harms_nobody(start: StartMirror, authority: Authority) -> None:
    """Plain HTTP on the port of https is told so in words; a client that trusts somebody else fails for itself alone."""
    mirror = await start(settings={"server": settings(authority)})
    async with mirror.session.get(mirror.url.replace("https", "http") + "/v2/") as response:
        assert response.status == 400
        assert "this port speaks HTTPS" in (await response.json())["errors"][0]["message"]
    with pytest.raises(aiohttp.ClientSSLError):
        async with mirror.session.get("/v2/"):
            pass
    async with mirror.session.get("/v2/", ssl=trusting(authority)) as response:
        assert response.status == 200


async def test_hot_manifests_take_the_fast_path_over_tls(
    start: StartMirror, upstream: Scripted, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over plain HTTP: after the second request aiohttp sees no more of them."""
    image = upstream.add_image("library/app", "latest")
    mirror = await start(settings={"server": settings(authority)})
    answered: list[bytes] = []
    answer = Shortcuts.answer

    def noted(shortcuts: Shortcuts, data: bytes, loopback: bool, client: str) -> bytes | None:
        if (found := answer(shortcuts, data, loopback, client)) is not None:
            answered.append(found)
        return found

    monkeypatch.setattr(Shortcuts, "answer", noted)
    for _ in range(5):
        async with mirror.session.get("/v2/app/manifests/latest", ssl=trusting(authority)) as response:
            assert await response.read() == image.body
    assert len(answered) == 3


async def test_a_certificate_that_ends_soon_is_told(start: StartMirror, authority: Authority) -> None:
    """By /readyz and by a metric: the test's is good for a day."""
    mirror = await start(settings={"server": settings(authority)})
    async with mirror.session.get("/readyz", ssl=trusting(authority)) as response:
        (told,) = (await response.json())["degraded"]
        assert f"the mirror's own certificate {authority.certificate} expires on" in told
    async with mirror.session.get("/metrics", ssl=trusting(authority)) as response:
        # Other tests have had others.
        ours = f'mirror_certificate_expiry_seconds{{certificate="{authority.certificate}"'
        (line,) = [line for line in (await response.text()).splitlines() if line.startswith(ours)]
        assert 0 < float(line.rpartition(" ")[2]) <= 86400


async def test_the_doctor_knows_the_mirrors_own_certificate(start: StartMirror, authority: Authority) -> None:
    """It is reached by an address that no public authority signs for: the file of the settings is what is trusted, and nothing else. One that ends within a week
    is worth a word."""
    mirror = await start(settings={"server": settings(authority)})
    listen = mirror.url.removeprefix("https://")

    async def level(settings_: Settings) -> Level:
        (finding,) = await examine_mirror(settings_, Address.parse(settings_.server.own_url))
        return finding.level

    assert await level(load(None, {}, {"server": {"listen": listen, **settings(authority)}})) is Level.ADVICE
    stranger = Authority(authority.ca.parent.parent / "stranger")
    assert await level(load(None, {}, {"server": {"listen": listen, **settings(stranger)}})) is Level.PROBLEM


async def test_clients_log_in_by_certificate(
    authority: Authority, start: StartMirror, upstream: Scripted, tmp_path: Path
) -> None:
    """One of the authority's, with a name that a table has, is let in; another name, no certificate, and one of another authority are not; and an answer that was
    remembered for one is not given to another. It stays so when the mirror's own certificate is renewed."""
    upstream.add_image("library/app", "1")
    server = {**settings(authority), "tls_client_ca": str(authority.ca)}
    mirror = await start(settings={"server": server, "access": [{"who": ["cert:laptop"]}]})
    stranger = Authority(tmp_path / "stranger")

    def context(pair: tuple[Path, Path] | None) -> ssl.SSLContext:
        made = trusting(authority)
        if pair is not None:
            made.load_cert_chain(*pair)
        return made

    laptop, other, forged = authority.issue_to("laptop"), authority.issue_to("other"), stranger.issue_to("laptop")

    async def status(pair: tuple[Path, Path] | None) -> int:
        connector = aiohttp.TCPConnector(ssl=context(pair))
        async with aiohttp.ClientSession(connector=connector) as session:
            for _ in range(3):
                async with session.get(f"{mirror.url}/v2/library/app/manifests/1") as answer:
                    found = answer.status
            return found

    async def check() -> None:
        assert await status(laptop) == 200
        assert await status(None) == 404
        assert await status(other) == 404
        with pytest.raises(aiohttp.ClientError):
            await status(forged)

    await check()
    before = await asyncio.to_thread(shown_serial, mirror.url, trusting(authority))
    authority.issue()
    os.kill(os.getpid(), signal.SIGHUP)
    while await asyncio.to_thread(shown_serial, mirror.url, trusting(authority)) == before:
        await asyncio.sleep(0.05)
    await check()


def test_authorities_of_clients_that_cannot_be_used_are_refused(authority: Authority, tmp_path: Path) -> None:
    """Without the mirror's own certificate, without a file, without PEM in it: by the key, saying what to do."""
    assert "tls_certificate and tls_key are needed" in fault({"tls_client_ca": str(authority.ca)})
    (tmp_path / "empty.pem").write_text("")
    for file, told in (("nothing.pem", "cannot be read"), ("empty.pem", "no certificates")):
        line = fault({**settings(authority), "tls_client_ca": str(tmp_path / file)})
        assert "server.tls_client_ca" in line
        assert told in line
