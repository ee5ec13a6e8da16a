"""What a running mirror does after ``mirror reload``: registries, their credentials, hosted repositories and access, with one worker and with two."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.support.commands import Commands
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.pushes import push_blob, push_image, say
from tests.support.scripted import Scripted

_TIMES = 12
"""Requests on connections of their own that must all be answered alike: each may reach another worker."""


async def everywhere(url: str, method: str, path: str, status: int, **headers: str) -> None:
    """Waits until all workers answer with a status."""
    deadline, alike, got = time.monotonic() + PATIENCE, 0, 0
    while alike < _TIMES:
        async with aiohttp.ClientSession(url) as session:
            got = (await say(session, method, path, **headers)).status
        alike = alike + 1 if got == status else 0
        assert alike or time.monotonic() < deadline, f"{method} {path} is answered {got}, not {status}"


@pytest.fixture(params=["1", "2"])
def workers(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Write = Callable[[str], object]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return (tmp_path / "mirror.toml").write_text


def running(tmp_path: Path, workers: str, *options: str) -> MirrorProcess:
    return MirrorProcess(tmp_path / "cache", {}, "--config", str(tmp_path / "mirror.toml"), "--workers", workers, *options)


async def test_registries_and_their_credentials(tmp_path: Path, write: Write, workers: str, upstream: Scripted) -> None:
    """Other credentials and endpoints are used from the next request on, one that is added is mirrored, one that is taken out is not; a registry that has not
    changed keeps its token. Settings that cannot be used change nothing, and the command says which."""
    upstream.auth, upstream.accounts = "bearer", {"alice": "new"}
    upstream.add_image("team/app", "1")
    async with Scripted() as same:
        same.auth = "bearer"
        same.add_image("team/same", "1")

        def settings(password: str, more: str = "") -> str:
            return (
                f'[registries."lan:1"]\nendpoints = ["{upstream.url}"]\nusername = "alice"\npassword = "{password}"\n'
                f'[registries."lan:2"]\nendpoints = ["{same.url}"]\n{more}'
            )

        write(settings("old"))
        with running(tmp_path, workers) as mirror:
            reload = Commands(tmp_path / "cache")
            await everywhere(mirror.url, "HEAD", "/v2/lan:1/team/app/manifests/1", 403)
            await everywhere(mirror.url, "HEAD", "/v2/lan:2/team/same/manifests/1", 200)
            tokens = same.count("GET", "/token")
            write(settings("new", f'[registries."lan:3"]\nendpoints = ["{same.url}"]\nmax_rate = "1MB/s"\n'))
            assert await reload("reload") == 'taken: registries."lan:1".password, registries."lan:3"\n'
            await everywhere(mirror.url, "GET", f"/v2/lan:2/team/same/blobs/{same.add_blob(b'z')}", 200)
            assert workers == "2" or same.count("GET", "/token") == tokens, "lan:2 has asked for another token"
            await everywhere(mirror.url, "GET", "/v2/lan:1/team/app/manifests/1", 200)
            await everywhere(mirror.url, "GET", "/v2/lan:3/team/same/manifests/1", 200)
            blob = same.add_blob(b"x" * 100_000)
            await everywhere(mirror.url, "GET", f"/v2/lan:3/team/same/blobs/{blob}", 200)
            if workers == "2":
                # Those that replace others share the caps on downloads with the registries that there were at the start.
                for pid in mirror.workers:
                    os.kill(pid, signal.SIGKILL)
                await until(lambda: mirror.log.count("was ended by signal 9") == 2)
                await everywhere(mirror.url, "GET", f"/v2/lan:3/team/same/blobs/{same.add_blob(b'y' * 100_000)}", 200)
            write(settings("new", '[registries."lan:9"]\nendpoints = ["gopher://lan"]\n'))
            done = await reload.run("reload")
            assert done.returncode == 1
            assert "registries.lan:9.endpoints.0.url" in done.stderr
            await everywhere(mirror.url, "GET", "/v2/lan:3/team/same/manifests/1", 200)
            write(settings("new"))
            assert await reload("reload") == 'taken: registries."lan:3"\n'
            await everywhere(mirror.url, "GET", "/v2/lan:3/team/same/manifests/1", 404)
            write(settings("new", '[server]\nlisten = "127.0.0.1:1"\n'))
            assert await reload("reload") == "nothing that is taken without a restart has changed\n"
            assert await asyncio.to_thread(mirror.terminate) == 0
            assert "Traceback" not in mirror.log


async def test_hosted_repositories(tmp_path: Path, write: Write, workers: str) -> None:
    """Repositories can be pushed to, or no longer, from the reload on; what was pushed is kept and is there when they are back; immutable tags and the largest size
    count at once."""
    write("")
    with running(tmp_path, workers, "--offline") as mirror:
        reload = Commands(tmp_path / "cache")
        await everywhere(mirror.url, "POST", "/v2/team/app/blobs/uploads/", 405)
        write('[hosted]\nrepositories = ["team/**"]\n')
        assert await reload("reload") == "taken: hosted.repositories\n"
        await everywhere(mirror.url, "POST", "/v2/team/app/blobs/uploads/", 202)
        async with aiohttp.ClientSession(mirror.url) as session:
            await push_image(session, "team/app", "v1")
            await push_image(session, "team/app", "v2", b"another layer")
            kept = await push_blob(session, "team/app", b"x" * 1000)
        await everywhere(mirror.url, "GET", "/v2/team/app/manifests/v1", 200)
        write('[hosted]\nrepositories = ["team/**"]\nimmutable = ["team/**:v1"]\nmax_size = "1B"\n')
        assert await reload("reload") == "taken: hosted.max_size, hosted.immutable\n"
        await everywhere(mirror.url, "DELETE", "/v2/team/app/manifests/v1", 409)
        await everywhere(mirror.url, "POST", "/v2/team/app/blobs/uploads/", 403)
        write('[hosted]\nrepositories = ["other/**"]\n')
        await reload("reload")
        await everywhere(mirror.url, "POST", "/v2/team/app/blobs/uploads/", 403)
        await everywhere(mirror.url, "POST", "/v2/other/app/blobs/uploads/", 202)
        write('[hosted]\nrepositories = ["team/**"]\n')
        await reload("reload")
        await everywhere(mirror.url, "GET", "/v2/team/app/manifests/v1", 200)
        await everywhere(mirror.url, "GET", f"/v2/team/app/blobs/{kept}", 200)


async def test_access(tmp_path: Path, write: Write, workers: str, upstream: Scripted) -> None:
    """Rules and limits count from the reload on, also for answers that were remembered."""
    upstream.add_image("team/app", "1")
    registry = f'[registries."docker.io"]\nendpoints = ["{upstream.url}"]\n'
    write(registry)
    with running(tmp_path, workers) as mirror:
        reload = Commands(tmp_path / "cache")
        await everywhere(mirror.url, "GET", "/v2/team/app/manifests/1", 200)
        write(f'{registry}[[access]]\nwho = ["anyone"]\nrepositories = ["other/**"]\n')
        assert await reload("reload") == "taken: access\n"
        await everywhere(mirror.url, "GET", "/v2/team/app/manifests/1", 404)
        write(f'{registry}[[access]]\nwho = ["anyone"]\nrequests_per_minute = 1\n')
        await reload("reload")
        await everywhere(mirror.url, "GET", "/v2/team/app/manifests/1", 429)
        assert upstream.count("GET", "/manifests/1") == 1


async def test_a_mirror_that_is_not_there(tmp_path: Path) -> None:
    """The command says that none runs, and how another is named."""
    done = await Commands(tmp_path / "cache").run("reload")
    assert done.returncode == 1
    assert "no mirror runs" in done.stderr


async def test_clients_with_their_own_credentials(tmp_path: Path, write: Write, workers: str, upstream: Scripted) -> None:
    """Where a registry gets ``credentials = "client"``, what was cached with the mirror's own account is from then on for those to whom the registry gives it, also where an
    equal request was answered before; each worker asks it once about a client, whichever worker has given it its token. And back."""
    upstream.auth, upstream.accounts = "bearer", {"robot": "own", "alice": "hers", "bob": "his"}
    upstream.rights = {"robot": {"team/app"}, "alice": {"team/app"}, "bob": set()}
    upstream.add_image("team/app", "1")
    port = free_port()
    server = f'[server]\nlogin_listen = "127.0.0.1:{port}"\n[registries."lan:1"]\nendpoints = ["{upstream.url}"]\n'
    own = f'{server}username = "robot"\npassword = "own"\n'
    write(own)
    path = "/v2/lan:1/team/app/manifests/1"
    alice, bob = (aiohttp.encode_basic_auth(*account) for account in (("alice", "hers"), ("bob", "his")))
    with running(tmp_path, workers) as mirror:
        reload = Commands(tmp_path / "cache")
        await everywhere(mirror.url, "GET", path, 200)
        write(f'{server}credentials = "client"\n')
        taken = await reload("reload")
        assert 'registries."lan:1".credentials' in taken
        await everywhere(mirror.url, "GET", path, 404)
        await everywhere(mirror.url, "GET", path, 404, Authorization=bob)
        heads = upstream.count("HEAD", "/manifests/1")
        await everywhere(mirror.url, "GET", path, 200, Authorization=alice)
        login = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session:
            scope = "repository:lan:1/team/app:pull"
            async with session.get(f"{login}/token?service=mirror&scope={scope}", headers={"Authorization": alice}) as answer:
                token = f"Bearer {(await answer.json())['token']}"
        await everywhere(login, "GET", path, 200, Authorization=token)
        assert upstream.count("HEAD", "/manifests/1") - heads <= 2 * int(workers), "with the challenge, once for each worker"
        write(own)
        await reload("reload")
        await everywhere(mirror.url, "GET", path, 200)
