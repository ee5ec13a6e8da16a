"""Access with worker processes, as a user runs it: what changes counts in all of them, and no secret is in any log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.commands import Commands
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted

_PATH = "/v2/library/app/manifests/1"
_AT_ONCE = 12
"""Requests by new connections, of which every worker takes some."""
_WRONG = {403, 429}
"""Answers to a wrong login: many wrong ones are slowed down."""


def _status(url: str, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def until_all(url: str, wanted: int | set[int], **headers: str) -> None:
    """Waits until all workers answer so."""
    found: set[int] = set()
    async with asyncio.timeout(PATIENCE):
        while not found or not found <= (wanted if isinstance(wanted, set) else {wanted}):
            found = set(await asyncio.gather(*(asyncio.to_thread(_status, url, headers) for _ in range(_AT_ONCE))))


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_commands_and_sighup_change_counts_in_every_process(upstream: Scripted, tmp_path: Path, workers: str) -> None:
    """A token that is added and removed, a user whose password is changed and who is removed, and other tables. A bearer token that one process signed is good in all."""
    upstream.add_image("library/app", "1")
    file = tmp_path / "mirror.toml"
    file.write_text('[[access]]\nwho = ["@users", "token:ci"]\n')
    commands = Commands(tmp_path / "cache")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(file), "--workers", workers) as mirror:
        url = f"{mirror.url}{_PATH}"
        await until_all(url, 404)
        token = (await commands.json("token", "add", "ci"))["secret"]
        await until_all(url, 200, Authorization=f"Bearer {token}")
        await commands("token", "rm", "ci")
        await until_all(url, _WRONG, Authorization=f"Bearer {token}")
        await commands("user", "add", "alice", "--password-stdin", stdin="correct horse\n")
        basic = {"Authorization": "Basic YWxpY2U6Y29ycmVjdCBob3JzZQ=="}
        await until_all(url, 200, **basic)
        asked = urllib.request.Request(f"{mirror.url}/token?scope=repository:library/app:pull", headers=basic)
        with await asyncio.to_thread(urllib.request.urlopen, asked) as answer:
            bearer = f"Bearer {json.load(answer)['token']}"
        await until_all(url, 200, Authorization=bearer)
        await commands("user", "passwd", "alice", "--password-stdin", stdin="battery staple\n")
        await until_all(url, _WRONG, **basic)
        await until_all(url, _WRONG, Authorization=bearer)
        changed = {"Authorization": "Basic YWxpY2U6YmF0dGVyeSBzdGFwbGU="}
        await until_all(url, 200, **changed)
        assert "alice is removed" in await commands("user", "rm", "alice")
        await until_all(url, _WRONG, **changed)
        assert (await commands.run("user", "rm", "alice")).returncode == 1
        file.write_text('[[access]]\nwho = ["anyone"]\n')
        os.kill(mirror.pid, signal.SIGHUP)
        await until_all(url, 200)
        file.write_text('[[access]]\nwho = ["@nobody"]\n')
        os.kill(mirror.pid, signal.SIGHUP)
        await until_all(url, 200)
        await until(lambda: "there is no group 'nobody'" in mirror.log)
        file.write_text('[[access]]\nwho = ["anyone"]\nmay = []\n')
        os.kill(mirror.pid, signal.SIGHUP)
        await until_all(url, 404)
        assert "correct horse" not in mirror.log
        assert await asyncio.to_thread(mirror.terminate) == 0


def _send(url: str, request: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        client.sendall(request.encode("latin-1"))
        while client.recv(65536):
            pass


async def test_a_secret_path_is_in_no_log(upstream: Scripted, tmp_path: Path) -> None:
    """However the request is written, and whether it succeeds, fails in parsing, or is no HTTP at all: neither the access log, nor an error, nor the audit log has the token."""
    upstream.add_image("library/app", "1")
    commands = Commands(tmp_path / "cache")
    token = (await commands.json("token", "add", "laptop"))["secret"]
    file = tmp_path / "mirror.toml"
    file.write_text(f'[log]\nlevel = "debug"\n[server]\naudit_log = "{tmp_path}/audit.log"\n[[access]]\nwho = ["token:laptop"]\n')
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--config", str(file)) as mirror:
        end = "Host: localhost\r\nConnection: close\r\n\r\n"
        for prefix in ("/t", "//t", "/%74", "http://localhost/t", "/T"):
            for path in (
                _PATH,
                "/v2/library/nothing/manifests/1",
                "/v2/",
                "/v2/library/app/blobs/sha256:0",
                "/",
                "/v2/%ff",
                "/v2/a?ns=x.y",
            ):
                for method in ("GET", "POST", "HEAD"):
                    await asyncio.to_thread(_send, mirror.url, f"{method} {prefix}/{token}{path} HTTP/1.1\r\n{end}")
            await asyncio.to_thread(_send, mirror.url, f"GET {prefix}/{token}/v2/ HTTP/9.9\r\n{end}")
            await asyncio.to_thread(_send, mirror.url, f"G=T {prefix}/{token}/v2/ HTTP/1.1\r\n{end}")
            await asyncio.to_thread(_send, mirror.url, f"GET {prefix}/{token}/v2/ x HTTP/1.1\r\n{end}")
        assert await asyncio.to_thread(mirror.terminate) == 0
        assert '"repository":"docker.io/library/app","reference":"1","path":"","status":200' in mirror.log
        for log in (mirror.log, (tmp_path / "audit.log").read_text()):
            assert token not in log
            assert token[7:30] not in log
        assert '"token": "laptop"' in (tmp_path / "audit.log").read_text()
