"""The mirror itself, and the clients of this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mirror.clients import CLIENTS, Address, runs_systemd
from mirror.doctor import local
from mirror.doctor.findings import Level
from mirror.names import Digest
from mirror.storage.sightings import Block
from mirror.wiring import store
from tests.doctor.conftest import one, settings
from tests.e2e.test_dockerd import Dockerd
from tests.support.mirrors import Mirror
from tests.support.ports import free_port
from tests.support.programs import require, require_root
from tests.support.scripted import Scripted

LAN = Address.parse("http://mirror.lan:5000")
PROGRAMS = {"docker": "dockerd", "containerd": "containerd", "podman": "podman", "buildkit": "buildkitd", "k3s": "k3s"}


async def test_a_mirror_that_runs(mirror: Mirror, tree: dict[str, Any]) -> None:
    """Says so."""
    told = one(await local.examine_mirror(settings(tree), Address.parse(mirror.url)), "mirror")
    assert told.level == Level.OK


async def test_a_mirror_that_is_degraded(mirror: Mirror, upstream: Scripted, tree: dict[str, Any]) -> None:
    """Says of what."""
    await upstream.stop()
    for _ in range(6):
        await mirror.get("/v2/app/manifests/1")
    told = one(await local.examine_mirror(settings(tree), Address.parse(mirror.url)), "mirror")
    assert told.level == Level.ADVICE
    assert upstream.url in told.message


async def test_no_mirror_and_another_program(upstream: Scripted, tree: dict[str, Any]) -> None:
    """Nobody there: how to start it. Somebody else there: to give the mirror another address."""
    told = one(await local.examine_mirror(settings(tree), Address.parse(f"http://127.0.0.1:{free_port()}")), "mirror")
    assert told.level == Level.PROBLEM
    assert "mirror serve" in told.cure
    told = one(await local.examine_mirror(settings(tree), Address.parse(upstream.url)), "mirror")
    assert told.level == Level.PROBLEM
    assert "another program answers" in told.message
    assert "server.listen" in told.cure


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes it look as if a single client were installed, and no dockerd ran."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")

    def install(name: str) -> None:
        folder = tmp_path / f"bin-{name}"
        folder.mkdir(exist_ok=True)
        program = folder / PROGRAMS[name]
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


@pytest.mark.parametrize("name", list(CLIENTS))
async def test_a_client_is_told_of_the_mirror_or_not(name: str, only: Any, tree: dict[str, Any], tmp_path: Path) -> None:
    """Not told is advice, with the command that tells it; told is well; for another mirror is not told."""
    only(name)
    settled, client = settings(tree), CLIENTS[name]
    told = one(await local.examine_clients(settled, [LAN], tmp_path), name)
    assert told.level == Level.ADVICE
    assert f"mirror configure {name} --mirror http://mirror.lan:5000 --write" in told.cure
    for file in client.plan([LAN], list(settled.registries)):
        path = tmp_path / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    assert one(await local.examine_clients(settled, [LAN], tmp_path), name).level == Level.OK
    other = Address.parse("http://other.lan:5000")
    assert one(await local.examine_clients(settled, [other], tmp_path), name).level == Level.ADVICE


@pytest.mark.parametrize("name", ["docker", "containerd", "k3s"])
async def test_a_client_with_a_token_is_well(name: str, only: Any, tree: dict[str, Any], tmp_path: Path) -> None:
    """The secret path in its files is the mirror's address, whatever token it has."""
    only(name)
    for file in CLIENTS[name].plan([LAN.with_token("mirror_" + "x" * 43)], list(settings(tree).registries)):
        path = tmp_path / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    assert one(await local.examine_clients(settings(tree), [LAN], tmp_path), name).level == Level.OK


@pytest.mark.parametrize("url", ["http://mirror.lan:5443", "http://login.lan", "https://LOGIN.lan:1/"])
async def test_docker_in_front_of_an_address_for_logging_in(url: str, only: Any, tree: dict[str, Any], tmp_path: Path) -> None:
    """A problem: it would send Docker Hub's password there. The same port of another machine is none of ours."""
    only("docker")
    path = tmp_path / "etc" / "docker" / "daemon.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"registry-mirrors": ["http://mirror.lan:5000", url]}))
    tree = {**tree, "server": {**tree.get("server", {}), "login_listen": "0.0.0.0:5443", "login_hosts": ["login.lan"]}}
    told = one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker")
    assert told.level == Level.PROBLEM
    assert url in told.message
    path.write_text(json.dumps({"registry-mirrors": ["http://mirror.lan:5000", "http://other.lan:5443"]}))
    assert "log in" not in one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker").message


async def test_a_file_that_cannot_be_merged_or_read(only: Any, tree: dict[str, Any], tmp_path: Path) -> None:
    """A daemon.json that is no JSON is a problem that is named; bytes that are no text, or a folder in its place, stop nothing."""
    only("docker")
    path = tmp_path / "etc" / "docker" / "daemon.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    told = one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker")
    assert told.level == Level.PROBLEM
    assert str(path) in told.message
    path.write_bytes(b"\xff\xfe")
    assert one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker").level == Level.ADVICE
    path.unlink()
    path.mkdir()
    assert one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker").level == Level.ADVICE


async def test_a_real_dockerd_that_has_read_its_settings_or_not(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own word is asked for: a file that names the mirror is not enough before the daemon has read it."""
    require("dockerd", "docker")
    require_root("dockerd")
    path = tmp_path / "etc" / "docker" / "daemon.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({}))
    daemon = await asyncio.to_thread(Dockerd, "", path)
    try:
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        (file,) = CLIENTS["docker"].plan([LAN], ["docker.io"])
        path.write_text(file.text)
        told = one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker")
        assert told.level == Level.PROBLEM
        assert "has not read its settings" in told.message
        assert told.cure == CLIENTS["docker"].command(systemd=runs_systemd())
    finally:
        await asyncio.to_thread(daemon.stop)
    daemon = await asyncio.to_thread(Dockerd, "", path)
    try:
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        assert one(await local.examine_clients(settings(tree), [LAN], tmp_path), "docker").level == Level.OK
    finally:
        await asyncio.to_thread(daemon.stop)


async def test_trouble_with_many_registries_is_one_finding(tree: dict[str, Any]) -> None:
    """Without a network a running mirror has the same to say of each registry: once, apart from what else is degraded."""
    registries = ["docker.io", "ghcr.io", "quay.io"]
    lines = [f"{name}: https://{name} is paused: no route" for name in registries]

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.json_response({"degraded": ["the disk is full", *lines], "registries": {name: [] for name in registries}})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        address = Address.parse(f"http://127.0.0.1:{runner.addresses[0][1]}")
        found = await local.examine_mirror(settings(tree), address)
    finally:
        await runner.cleanup()
    assert [finding.message for finding in found] == [
        "the disk is full",
        "it has trouble with 3 endpoints: docker.io, ghcr.io, quay.io",
    ]


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("name", list(CLIENTS))
async def test_clients_that_can_go_around_a_guard(name: str, mode: str, only: Any, tree: dict[str, Any], tmp_path: Path) -> None:
    """Each is named with what closes the way, if a table refuses anything."""
    only(name)
    settled = settings(tree | {"guard": [{"deny": True, "mode": mode}]})
    for file in CLIENTS[name].plan([LAN], list(settled.registries)):
        path = tmp_path / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.merge(""))
    found = [finding for finding in await local.examine_clients(settled, [LAN], tmp_path) if finding.check == name]
    around = [finding for finding in found if "[[guard]]" in finding.message]
    assert len(around) == (mode == "enforce")
    assert all("firewall" in finding.cure for finding in around)


async def test_a_block_by_hand_can_be_gone_around_as_well(only: Any, tree: dict[str, Any], tmp_path: Path) -> None:
    """Without any table; not once it has ended, and not where there is no cache."""
    only("containerd")
    settled = settings(tree)
    for file in CLIENTS["containerd"].plan([LAN], list(settled.registries)):
        path = tmp_path / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.merge(""))

    async def around() -> list[str]:
        found = await local.examine_clients(settled, [LAN], tmp_path)
        return [
            finding.message
            for finding in found
            if finding.check == "containerd" and "pulled from the registry itself" in finding.message
        ]

    assert await around() == []
    digest = Digest.of(b"a miner")
    async with store(settled) as opened:
        await opened.block(Block(digest, "a miner", "ann", 1.0))
        assert await around() == ["what is blocked by hand (1 digest) is pulled from the registry itself"]
        await opened.unblock(digest)
        assert await around() == []
