"""Ways out: real proxies in front of a registry that nothing else leads to. The mirror runs in a network of its own, where only the proxy can be reached."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from mirror.config.registries import DEFAULT_ENDPOINTS
from tests.support.mirrors import until
from tests.support.namespaces import Confined, confined
from tests.support.ports import free_port
from tests.support.programs import Program, answers, missing, require, run
from tests.support.scripted import Redirect, Scripted

NAMES = "127.0.0.1 registry.test auth.test cdn.test hub.test\n"
"""What only the proxy's side resolves, but for ``socks5``. These addresses are its own: the mirror's loopback has no registry."""


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Confined]:
    """The mirror's network; with a parameter of True its hosts file knows the names."""
    if os.geteuid() != 0:
        missing("a network namespace is for root only")
    with confined(tmp_path, NAMES if getattr(request, "param", False) else "") as found:
        yield found


def start_proxy(kind: str, network: Confined, folder: Path) -> tuple[Program, int]:
    """A proxy that wants ``robot`` and ``hunter2``, listening in the mirror's network, with a hosts file of its own."""
    port = free_port()
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{NAMES}")
    if kind == "tinyproxy":
        require("tinyproxy")
        config = folder / "tinyproxy.conf"
        config.write_text(
            f"Port {port}\nListen {network.outer}\nTimeout 60\nMaxClients 50\nLogLevel Connect\nBasicAuth robot hunter2\nAllow 0.0.0.0/0\n"
        )
        command = f"exec tinyproxy -d -c {config}"
    else:
        require("microsocks")
        command = f"exec microsocks -i {network.outer} -p {port} -u robot -P hunter2"
    program = Program(["unshare", "-m", "sh", "-c", f"mount --bind {hosts} /etc/hosts && {command}"], folder / f"{kind}.log")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((network.outer, port)) == 0

    program.wait_until(listens)
    return program, port


def start_mirror(network: Confined, folder: Path, registry: str, proxy: str, password: str = "hunter2") -> tuple[Program, str]:
    """Docker Hub alone is reached by the proxy; all others could be reached without, but cannot."""
    credentials = folder / "credentials"
    credentials.write_text(f"robot:{password}\n")
    return start_mirror_with(
        network,
        folder,
        f'[cache]\nprefetch = false\n[upstream]\nproxy = "none"\nregistries = "listed"\n[registries."docker.io"]\nendpoints = ["{registry}"]\n'
        f'proxy = "{proxy}"\nproxy_credentials_file = "{credentials}"\n',
    )


def start_mirror_with(network: Confined, folder: Path, settings: str) -> tuple[Program, str]:
    config = folder / "mirror.toml"
    config.write_text(settings)
    url = f"http://{network.inner}:5000"
    command = [sys.executable, "-m", "mirror", "serve", "--listen", f"{network.inner}:5000", "--config", str(config)]
    mirror = Program(network.command(*command, "--cache-dir", str(folder / "cache")), folder / "mirror.log")
    mirror.wait_until(lambda: answers(f"{url}/v2/"))
    return mirror, url


@pytest.mark.parametrize(
    ("kind", "scheme", "network"),
    [("microsocks", "socks5h", False), ("microsocks", "socks5", True), ("tinyproxy", "http", False)],
    indirect=["network"],
)
async def test_an_image_comes_through_a_real_proxy_and_nothing_goes_past_it(
    kind: str, scheme: str, network: Confined, tmp_path: Path, upstream: Scripted
) -> None:
    """Manifest, token and a redirected blob, each on a host of its own, come through the registry's proxy. No DNS query is sent: by `socks5h` and `http` the
    names are known beyond the proxy alone, by `socks5` from the hosts file. Nothing else leads to upstream, which listens on another network's loopback."""
    image = upstream.add_image("library/app", "latest", layers=[os.urandom(3_000_000)])
    upstream.auth, upstream.realm = "bearer", f"http://auth.test:{upstream.port}/token"
    async with Scripted() as cdn:
        (layer,) = image.layers
        cdn.add_blob(upstream.blobs[str(layer)])
        upstream.fail(f"blobs/{layer}", Redirect(f"http://cdn.test:{cdn.port}/v2/library/app/blobs/{layer}"), times=20)
        proxy, port = await asyncio.to_thread(start_proxy, kind, network, tmp_path)
        address = f"{scheme}://{network.outer}:{port}"
        mirror, url = await asyncio.to_thread(start_mirror, network, tmp_path, f"http://registry.test:{upstream.port}", address)
        try:
            async with aiohttp.ClientSession(url) as session:
                async with session.get("/v2/library/app/manifests/latest") as answer:
                    assert (answer.status, await answer.read()) == (200, image.body)
                async with session.get(f"/v2/library/app/blobs/{layer}") as answer:
                    assert (answer.status, await answer.read()) == (200, upstream.blobs[str(layer)])
        finally:
            mirror.stop()
            proxy.stop()
        assert upstream.count("GET", "manifests/latest") >= 1
        assert upstream.count("GET", "/token") >= 1
        assert cdn.count("GET", str(layer)) >= 1
        assert (network.queries, network.unrouted) == ([], 0)
        network.check_recorder()
        assert "hunter2" not in mirror.log


@pytest.mark.parametrize(("kind", "scheme"), [("microsocks", "socks5h"), ("tinyproxy", "http")])
async def test_what_the_mirror_asks_by_itself_and_what_commands_ask_goes_through_the_proxy_too(
    kind: str, scheme: str, network: Confined, tmp_path: Path, upstream: Scripted
) -> None:
    """Prefetching, warm lists, checks of tags, lists of tags and referrers, searches, and ``mirror pull``, ``search``, ``tags`` and ``doctor``: each is seen by
    upstream, and no DNS query and no packet for another destination leaves the mirror."""
    layers = [os.urandom(100_000) for _ in range(3)]
    image = upstream.add_image("library/app", "latest", layers=layers)
    warm = upstream.add_image("library/warm", "1", layers=[os.urandom(100_000)])
    pulled = upstream.add_image("library/pulled", "1", layers=[os.urandom(100_000)])
    upstream.auth, upstream.realm = "bearer", f"http://auth.test:{upstream.port}/token"
    credentials = tmp_path / "credentials"
    credentials.write_text("robot:hunter2\n")
    async with Scripted() as cdn:
        cdn.add_to_hub("app", "The official one", 50, official=True)
        for layer in (*image.layers, *warm.layers, *pulled.layers):
            cdn.add_blob(upstream.blobs[str(layer)])
            upstream.fail(
                f"blobs/{layer}", Redirect(f"http://cdn.test:{cdn.port}/v2/library/app/blobs/{layer}"), times=20, method="*"
            )
        proxy, port = await asyncio.to_thread(start_proxy, kind, network, tmp_path)
        endpoints = f'endpoints = ["http://registry.test:{upstream.port}"]\n'
        hub = f'search = "http://hub.test:{cdn.port}/v1/search"\ntag_details = "http://hub.test:{cdn.port}/v2/repositories"\n'
        settings = (
            f'[upstream]\nproxy = "{scheme}://{network.outer}:{port}"\nproxy_credentials_file = "{credentials}"\nregistries = "listed"\n'
            f'[cache]\ntag_ttl = 0\n[[warm]]\nimages = ["warm:1"]\n'
            + "".join(f'[registries."{name}"]\n{endpoints}' for name in DEFAULT_ENDPOINTS)
        ).replace(endpoints, f"{endpoints}{hub}", 1)
        mirror, url = await asyncio.to_thread(start_mirror_with, network, tmp_path, settings)
        try:
            async with aiohttp.ClientSession(url) as session:
                for path in (
                    "v2/app/manifests/latest",
                    "v2/app/manifests/latest",
                    "v2/app/tags/list",
                    f"v2/app/referrers/{image.digest}",
                ):
                    async with session.get(f"/{path}") as answer:
                        assert answer.status == 200
                async with session.get("/v1/search?q=app") as answer:
                    found = json.loads(await answer.read())
                    assert found["results"][0]["star_count"] == 50, found
                async with session.get(f"/v2/app/blobs/{image.layers[0]}") as answer:
                    assert await answer.read() == layers[0]
            await until(lambda: all(cdn.count("GET", str(layer)) for layer in (*image.layers, *warm.layers)))
            shared = ["--config", str(tmp_path / "mirror.toml"), "--cache-dir", str(tmp_path / "cache")]
            mine = [sys.executable, "-m", "mirror"]
            printed = ""
            for command in (["pull", "pulled:1"], ["search", "app"], ["tags", "app"]):
                printed += await asyncio.to_thread(run, *network.command(*mine, *command, *shared))
            before = len(upstream.asked)
            # It ends with 1: Docker Hub's limit is not known here, for example.
            doctor = await asyncio.to_thread(run, *network.command("sh", "-c", '"$@" || true', "sh", *mine, "doctor", *shared))
        finally:
            mirror.stop()
            proxy.stop()
        assert doctor.count(f"through the proxy {scheme}://{network.outer}:{port}") == len(DEFAULT_ENDPOINTS), doctor
        assert len(upstream.asked) - before >= len(DEFAULT_ENDPOINTS)
        assert cdn.count("GET", str(pulled.layers[0])) == 1
        assert upstream.count("HEAD", "app/manifests/latest") >= 1
        for path in ("/token", "app/tags/list", "app/referrers/"):
            assert upstream.count("GET", path) >= 1, path
        assert cdn.count("GET", "/v1/search") >= 1
        assert (network.queries, network.unrouted) == ([], 0)
        network.check_recorder()
        assert "hunter2" not in mirror.log + printed + doctor


@pytest.mark.parametrize(("kind", "scheme"), [("microsocks", "socks5h"), ("tinyproxy", "http")])
async def test_a_proxy_that_refuses_the_password_is_named_without_it(
    kind: str, scheme: str, network: Confined, tmp_path: Path, upstream: Scripted
) -> None:
    """The client is told which proxy refuses, and what to do; upstream is not asked, neither past the proxy."""
    upstream.add_image("library/app", "latest")
    proxy, port = await asyncio.to_thread(start_proxy, kind, network, tmp_path)
    address = f"{scheme}://{network.outer}:{port}"
    # By CONNECT, where an answer is the proxy's for sure.
    registry = f"{'http' if kind == 'microsocks' else 'https'}://registry.test:{upstream.port}"
    mirror, url = await asyncio.to_thread(start_mirror, network, tmp_path, registry, address, "wr0ng")
    try:
        async with aiohttp.ClientSession(url) as session, session.get("/v2/library/app/manifests/latest") as answer:
            status, message = answer.status, json.loads(await answer.read())["errors"][0]["message"]
    finally:
        mirror.stop()
        proxy.stop()
    assert status == 503
    assert f"the proxy {address} (registries." in message
    assert "check the user and password in proxy_credentials_file" in message
    assert "wr0ng" not in message + mirror.log
    assert upstream.asked == []
    assert network.queries == []
