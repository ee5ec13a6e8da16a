"""SIGHUP and ``mirror reload``: which settings are taken, which need a restart, and what is logged (mirror/cli/reload.py)."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import pytest

from mirror import app
from mirror.config import Settings, load
from mirror.config.in_force import changed
from tests.support.mirrors import MirrorProcess, until
from tests.support.patience import PATIENCE


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sighup_takes_what_it_can_and_says_what_it_cannot(tmp_path: Path, workers: str) -> None:
    """The log's level, in every process, logged once; each other setting that has changed by its name, secrets without their value; faults change nothing."""
    file = tmp_path / "mirror.toml"
    file.write_text('[log]\nlevel = "warning"\n')
    with MirrorProcess(
        tmp_path / "cache", {"docker.io": "http://127.0.0.1:1"}, "--config", str(file), "--workers", workers
    ) as mirror:
        file.write_text(
            '[log]\nlevel = "info"\n[cache]\ntag_ttl = "9m"\n[server]\nadmin_token = "0123456789abcdef-secret"\n[registries."lan:5000"]\nendpoints = ["http://lan:5000"]\n'
        )
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: "a restart is needed" in mirror.log)
        assert mirror.log.count('SIGHUP: taken: log.level, registries."lan:5000";') == 1
        (told,) = [line for line in mirror.log.splitlines() if "a restart is needed" in line]
        assert told.endswith("what has changed of server.admin_token, cache.tag_ttl")
        assert "secret" not in mirror.log
        # Workers take the level too, shortly after the parent has logged it.
        async with asyncio.timeout(PATIENCE):
            while "INFO mirror.api.connection: refused a request" not in mirror.log:
                with pytest.raises(urllib.error.HTTPError):
                    await asyncio.to_thread(
                        urllib.request.urlopen, urllib.request.Request(f"{mirror.url}/v2/", headers={"X" * 40_000: "1"})
                    )
        file.write_text('[cache]\ntag_ttl = "soon"\n')
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: "the settings cannot be used" in mirror.log)
        assert mirror.log.count("the settings cannot be used") == 1
        assert f"cache.tag_ttl (in {file})" in mirror.log
        assert await asyncio.to_thread(mirror.terminate) == 0


async def test_a_worker_that_replaces_another_has_the_settings_of_the_last_sighup(tmp_path: Path) -> None:
    """Not those with which the mirror was started."""
    file = tmp_path / "mirror.toml"
    file.write_text("")
    with MirrorProcess(tmp_path / "cache", {}, "--config", str(file), "--workers", "2") as mirror:
        file.write_text("[upstream]\noffline = true\n")
        os.kill(mirror.pid, signal.SIGHUP)
        await until(lambda: "SIGHUP: taken: upstream.offline" in mirror.log)
        for pid in mirror.workers:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: mirror.log.count("was ended by signal 9") == 2)
        for _ in range(10):
            assert json.loads(await asyncio.to_thread(_fetch, f"{mirror.url}/readyz"))["offline"] is True
        assert await asyncio.to_thread(mirror.terminate) == 0


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        return bytes(response.read())


async def test_each_sighup_is_answered_in_the_log(tmp_path: Path) -> None:
    """Whoever switches a mirror offline, online and offline again within a minute sees each; so does who sends it without a change, or with a fault."""
    file = tmp_path / "mirror.toml"
    file.write_text("")
    switched = [("offline", "SIGHUP: taken: upstream.offline = true"), ("online", "SIGHUP: taken: upstream.offline = false")]
    texts = {"offline": "[upstream]\noffline = true\n", "online": "", "wrong": "[upstream]\noffline = 7\n"}
    with MirrorProcess(tmp_path / "cache", {}, "--config", str(file)) as mirror:
        for count in (1, 2, 3):
            for text, line in [*switched, ("online", "SIGHUP: no setting"), ("wrong", "SIGHUP: the settings cannot be used")]:
                file.write_text(texts[text])
                os.kill(mirror.pid, signal.SIGHUP)
                await until(lambda line=line, count=count: mirror.log.count(line) == count)
        assert await asyncio.to_thread(mirror.terminate) == 0


def test_a_sighup_that_comes_before_it_can_be_handled_is_handled_later(tmp_path: Path) -> None:
    """It is neither lost nor ends the process."""
    # In a process of its own: here other threads would take the signal.
    command = [sys.executable, "-c", _EARLY, str(tmp_path / "cache")]
    assert subprocess.run(command, check=False, stdout=subprocess.PIPE, timeout=PATIENCE).stdout == b"handled\n"


_EARLY = """
import asyncio, os, signal, sys
from mirror import app
from mirror.config import load

settings = load(None, {}, {"server": {"listen": "127.0.0.1:0"}, "cache": {"dir": sys.argv[1]}})

async def main():
    hung_up = asyncio.Event()

    def reload():
        hung_up.set()
        return settings

    async with app.running(settings, reload=reload), asyncio.timeout(60):
        await hung_up.wait()
    print("handled")

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
os.kill(os.getpid(), signal.SIGHUP)
asyncio.run(main())
"""


async def test_sighups_in_quick_succession_do_not_keep_requests_waiting(tmp_path: Path) -> None:
    """Those that come while the mirror is busy are handled once: here each reload brings the next two."""
    settings = load(None, {}, {"server": {"listen": "127.0.0.1:0"}, "cache": {"dir": str(tmp_path / "cache")}})
    reloads, most = 0, 5000

    def reload() -> Settings:
        nonlocal reloads
        reloads += 1
        for _ in range(2 if reloads < most else 0):
            os.kill(os.getpid(), signal.SIGHUP)
        return settings

    async with app.running(settings, reload=reload) as url, aiohttp.ClientSession() as session:
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(5):
            async with session.get(f"{url}/v2/") as answer:
                assert answer.status == 200
        assert 0 < reloads < most
        most = 0


def test_a_worker_is_forked_with_sighup_blocked(tmp_path: Path) -> None:
    """So that one which comes before the worker handles it waits: it may mean settings that are newer than the fork."""
    command = [sys.executable, "-c", _FORKED]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    # A worker that ends before it serves ends the parent.
    assert subprocess.run(command, env=environment, check=False, stdout=subprocess.PIPE, timeout=PATIENCE).stdout == b"True\n"


_FORKED = """
import signal
from mirror.config import Server
from mirror.workers import parent

def work(_):
    print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return 0

parent.run(Server(listen="127.0.0.1:0", workers=2), parent.prepare(), work, print, print, 1, ())
"""


def test_which_settings_have_changed() -> None:
    """By name, secrets by their value."""

    def one(**registry: str) -> dict[str, dict[str, dict[str, str]]]:
        return {"registries": {"docker.io": {"username": "x", **registry}}}

    before = load(None, {}, one(password="a"))
    assert changed(before, load(None, {}, one(password="a"))) == []
    assert changed(before, load(None, {}, one(password="b"))) == ['registries."docker.io".password']
    after = load(None, {}, {**one(password="a"), "log": {"level": "debug"}, "cache": {"prefetch": "false"}})
    assert changed(before, after) == ["cache.prefetch", "log.level"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_terminal_that_is_closed_ends_the_mirror(tmp_path: Path, workers: str) -> None:
    """As it ends other programs; without a terminal SIGHUP means to read the settings again."""
    ours, its = pty.openpty()
    log = tmp_path / "log"
    with open(log, "wb") as file:
        running = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _IN_A_SESSION,
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--cache-dir",
                str(tmp_path / "c"),
                "--workers",
                workers,
            ],
            stdin=its,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        os.close(its)
        while b"listening on" not in log.read_bytes():
            assert running.poll() is None, log.read_text()
        os.close(ours)
        assert running.wait(40) == 0
        assert "stopping" in log.read_text()
    finally:
        running.kill()
        running.wait(10)


_IN_A_SESSION = """
import fcntl, runpy, sys, termios
if "_IN" not in __import__("os").environ:
    __import__("os").environ["_IN"] = "1"
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = "mirror"
runpy.run_module("mirror", run_name="__main__", alter_sys=True)
"""
"""The terminal on standard input becomes the session's own, as a login makes it."""
