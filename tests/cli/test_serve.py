"""``mirror serve`` as a user meets it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp

from mirror.api.access import AccessLog
from mirror.config import DEFAULT_ENDPOINTS
from tests.support.commands import mirror
from tests.support.mirrors import MirrorProcess
from tests.support.patience import patiently
from tests.support.ports import free_port
from tests.support.scripted import Hold, Scripted

MIB = 1024 * 1024


def test_the_start_says_where_what_and_how(tmp_path: Path) -> None:
    """Where it listens, where the cache is and how large it may get, which registries, and the line for daemon.json; which names live here, and that pushes to them
    change what others get by names that they know."""
    registries: dict[str, str | list[str]] = {"docker.io": "http://127.0.0.1:1", "lan:5001": "http://127.0.0.1:1"}
    hosted = {"HOSTED__REPOSITORIES": '["team/**", "library/app*"]', "HOSTED__SHADOW": "true"}
    with MirrorProcess(tmp_path / "cache", registries, "--max-size", "2GiB", **hosted) as running:
        while "pulls images of these names" not in running.log:
            pass
        for expected in (
            f"listening on {running.url}\n",
            f"cache in {tmp_path / 'cache'}, up to 2 GiB",
            "docker.io, ghcr.io, quay.io, registry.k8s.io, gcr.io, mcr.microsoft.com, public.ecr.aws, lan:5001",
            f'{{"registry-mirrors": ["{running.url}"]}}',
            "hosted: team/**, library/app* live here, and can be pushed to",
            "what is pushed to library/app* replaces what everybody gets who pulls images of these names",
        ):
            assert expected in running.log
        assert running.terminate() == 0


def test_who_reads_its_first_words_alone_may_leave(tmp_path: Path) -> None:
    """As with `mirror serve |& sed /listening/q`: it serves all the same."""
    for workers in ("1", "2"):
        command = [sys.executable, "-m", "mirror", "serve", "--listen", "127.0.0.1:0", "--workers", workers]
        command += ["--cache-dir", str(tmp_path / workers)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0) as running:
            assert running.stderr is not None
            # Read by the byte, so that it leaves amid what is told.
            told = b""
            while b"listening on" not in told or not told.endswith(b"\n"):
                told += running.stderr.read(1)
            running.stderr.close()
            url = told.split(b"listening on ")[1].decode().strip()
            with urllib.request.urlopen(f"{url}/healthz") as response:
                assert response.status == 200
            running.terminate()
            assert running.wait(40) == 0


def test_wrong_settings_end_the_start_with_every_fault_and_status_2(tmp_path: Path) -> None:
    """On standard error, without a traceback, without secrets."""
    config = tmp_path / "m.toml"
    config.write_text('[cache]\ntag_tl = 1\n[registries."docker.io"]\npassword = "hunter2"\n')
    done = mirror("serve", "--config", str(config), "--listen", "x", "--upstream", "docker.io=nope", MIRROR_CACHE__MAX_SIZE="-1")
    assert done.returncode == 2
    for expected in ("cache.tag_tl", "tag_ttl", "server.listen", 'registries."docker.io"', "cache.max_size"):
        assert expected in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
    assert mirror("serve", "--upstream", "docker.io").returncode == 2
    assert mirror("serve", "--no-such-flag").returncode == 2
    assert mirror("nonsense").returncode == 2


def test_a_start_that_cannot_be_says_why_with_status_1(tmp_path: Path) -> None:
    """A port that is taken, a cache directory that cannot be made."""
    with MirrorProcess(tmp_path / "cache", {}) as running:
        address = running.url.removeprefix("http://")
        done = mirror("serve", "--listen", address, "--cache-dir", str(tmp_path / "other"))
        assert done.returncode == 1
        assert address in done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    done = mirror("serve", "--listen", f"127.0.0.1:{free_port()}", "--cache-dir", str(tmp_path / "file" / "cache"))
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


async def test_flags_add_endpoints_to_what_a_file_says(upstream: Scripted, tmp_path: Path) -> None:
    """The same registry twice is two endpoints, in order; the file's credentials go to the first; and it listens on IPv6 where that is asked for."""
    upstream.auth, upstream.accounts = "basic", {"robot": "secret-pw"}
    image = upstream.add_image("library/app", "latest")
    config = tmp_path / "mirror.toml"
    config.write_text(
        '[registries."docker.io"]\nendpoints = ["https://registry.invalid"]\nusername = "robot"\npassword = "secret-pw"\n'
    )
    endpoints: dict[str, str | list[str]] = {"docker.io": [upstream.url, "http://127.0.0.1:1"]}
    arguments = ["--config", str(config), *(["--listen", "[::1]:0"] if has_ipv6() else [])]
    with MirrorProcess(tmp_path / "cache", endpoints, *arguments, LOG__LEVEL="debug") as running:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{running.url}/v2/app/manifests/latest") as response:
                assert await response.read() == image.body
            async with session.get(f"{running.url}/readyz") as response:
                ready = await response.text()
            async with session.get(f"{running.url}/metrics") as response:
                metrics = await response.text()
        assert running.terminate() == 0
        assert [entry["endpoint"] for entry in json.loads(ready)["registries"]["docker.io"]] == endpoints["docker.io"]
        basic = base64.b64encode(b"robot:secret-pw").decode()
        for text in (ready, metrics, running.log):
            assert "secret-pw" not in text
            assert basic not in text


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_help_and_version() -> None:
    """They need no settings and tell the flags."""
    assert "--upstream" in mirror("serve", "--help").stdout
    assert mirror("--version").stdout.startswith("mirror, version ")


async def test_sigterm_drains(upstream: Scripted, tmp_path: Path) -> None:
    """No new connections; the current request ends well; the download of one that has gone stays resumable; exit status 0."""
    finishing, leaving = upstream.add_blob(os.urandom(4 * MIB)), upstream.add_blob(os.urandom(4 * MIB))
    holds = {blob: Hold(MIB) for blob in (finishing, leaving)}
    for blob, hold in holds.items():
        upstream.fail(str(blob), hold)
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as running:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{running.url}/v2/app/blobs/{leaving}") as response:
                await response.content.readexactly(1000)
            async with session.get(f"{running.url}/v2/app/blobs/{finishing}") as response:
                await response.content.readexactly(1000)
                await holds[leaving].reached.wait()
                stopped = asyncio.create_task(asyncio.to_thread(running.terminate))
                for _ in patiently():
                    try:
                        (await session.get(f"{running.url}/v2/")).close()
                    except aiohttp.ClientConnectorError:
                        break
                    await asyncio.sleep(0.05)
                assert not stopped.done()
                holds[finishing].release.set()
                assert len(await response.read()) == 4 * MIB - 1000
                assert await stopped == 0
        running.start()
        holds[leaving].release.set()
        async with aiohttp.ClientSession() as session, session.get(f"{running.url}/v2/app/blobs/{leaving}") as response:
            assert await response.read() == upstream.blobs[str(leaving)]
        assert upstream.asked[-1].range == f"bytes={MIB}-{4 * MIB - 1}"
        assert running.terminate() == 0


async def test_the_access_log_has_a_line_for_each_request(upstream: Scripted, tmp_path: Path) -> None:
    """Client, repository, reference, status, bytes, duration, cache result; strange agents do no harm."""
    image = upstream.add_image("library/app", "latest")
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}) as running:
        async with aiohttp.ClientSession(headers={"User-Agent": 'a"b\tc'}) as session:
            for path in ("manifests/latest", f"blobs/{image.layers[0]}", "manifests/NONE"):
                async with session.get(f"{running.url}/v2/app/{path}") as response:
                    await response.read()
        assert running.terminate() == 0
        lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    assert [(line["status"], line["bytes"], line["reference"]) for line in lines[:2]] == [
        (200, len(image.body), "latest"),
        (200, 1000, str(image.layers[0])),
    ]
    assert lines[2]["status"] == 404
    for line in lines:
        assert line["client"] == "127.0.0.1"
        assert line["repository"] == "docker.io/library/app"
        assert line["cache"].startswith("mirror; fwd=miss")
        assert line["duration"] >= 0
        assert line["agent"] == 'a"b\tc'
        assert line["complete"] is True


def test_health_checks_are_logged_by_their_path(tmp_path: Path) -> None:
    """They have no repository: who counts lines by it counts pulls."""
    with MirrorProcess(tmp_path / "cache", {}) as running:
        paths = ["/healthz", "/readyz", "/metrics", "/v2/", "/"]
        for path in paths:
            with urllib.request.urlopen(f"{running.url}{path}") as response:
                response.read()
        assert running.terminate() == 0
        lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    assert [(line["path"], line["repository"], line["reference"], line["status"]) for line in lines] == [
        (path, "", "", 200) for path in paths
    ]


def test_on_a_terminal_lines_are_short_and_of_no_health_checks() -> None:
    """A failing one is shown."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    log = AccessLog(terminal)
    for path, status in (("/healthz", 200), ("/v2/", 200), ("/metrics", 200), ("/readyz", 421)):
        log.note("::1", "GET", "", "", path, status, 20, 0.01, "", "", True)
    log.note("::1", "GET", "docker.io/library/app", "7", "", 200, 2048, 0.5, "mirror; hit", "", True)
    log.close()
    first, second = terminal.getvalue().splitlines()
    assert first.endswith("::1 GET /readyz 421 20 B in 0.01 s")
    assert second.endswith("::1 GET docker.io/library/app:7 200 2 KiB in 0.50 s hit")


def test_json_logs(tmp_path: Path) -> None:
    """Every line of the log is JSON where that is asked for."""
    with MirrorProcess(tmp_path / "cache", {}, LOG__FORMAT="json", LOG__LEVEL="debug", SERVER__ACCESS_LOG="false") as running:
        assert running.terminate() == 0
        entries = [line for line in running.log.splitlines() if line.startswith("{") and "registry-mirrors" not in line]
    assert entries
    assert all({"time", "level", "logger", "message"} <= set(json.loads(entry)) for entry in entries)


async def test_the_log_has_a_line_for_what_upstream_did_and_no_traceback_for_what_clients_do(
    upstream: Scripted, tmp_path: Path
) -> None:
    """A failed request is one line that says why; clients that reset, at whatever moment, on hits and on misses, are no errors."""
    blobs = [upstream.add_blob(os.urandom(8 * MIB)) for _ in range(2)]
    image = upstream.add_image("library/app", "latest")
    upstreams: dict[str, str | list[str]] = {"docker.io": upstream.url, "ghcr.io": "http://127.0.0.1:1"}
    with MirrorProcess(tmp_path / "cache", upstreams, SERVER__ACCESS_LOG="false") as running:
        async with aiohttp.ClientSession() as session:
            for path in ("/v2/app/manifests/latest?ns=ghcr.io", "/v2/app/manifests/latest", f"/v2/app/blobs/{blobs[0]}"):
                async with session.get(running.url + path) as response:
                    await response.read()
        host, port = running.url.removeprefix("http://").split(":")
        hold = Hold(MIB)
        upstream.fail(str(blobs[1]), hold)
        for number, path in enumerate(
            [f"blobs/{blobs[0]}", f"blobs/{blobs[1]}", "manifests/latest", f"blobs/{image.config}"] * 6
        ):
            client = socket.create_connection((host, int(port)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request = f"GET /v2/app/{path} HTTP/1.1\r\nHost: m\r\n\r\n".encode()
            client.sendall(request[: len(request) - (number % 3 == 1) * 5] * (1 + number % 2))
            if number % 4:
                await asyncio.sleep(0.03 * (number % 4))
            client.close()
        hold.release.set()
        await asyncio.sleep(0.5)
        assert running.terminate() == 0
    lines = [line for line in running.log.splitlines() if " mirror" in line and "for Docker" not in line]
    [told] = [line for line in lines if "ghcr.io" in line and "WARNING" in line]
    assert "no connection with http://127.0.0.1:1/" in told
    assert "Connection refused" in told
    assert not [line for line in running.log.splitlines() if "Traceback" in line or "ERROR" in line]


async def test_a_limit_that_would_empty_the_cache_waits_for_a_confirmation(upstream: Scripted, tmp_path: Path) -> None:
    """The earlier limit stays in force, and the log and /readyz say so; a little less is taken at once, and anything with --yes."""
    blobs = [upstream.add_blob(os.urandom(10 * MIB)) for _ in range(4)]
    with MirrorProcess(tmp_path / "cache", {"docker.io": upstream.url}, "--max-size", "1GiB") as running:
        async with aiohttp.ClientSession() as session:
            for blob in blobs:
                async with session.get(f"{running.url}/v2/app/blobs/{blob}") as response:
                    await response.read()
        while sum(file.is_file() for file in (tmp_path / "cache/blobs").rglob("*")) < 4:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(running.terminate) == 0

    def start(*arguments: str) -> tuple[list[str], int, str]:
        with MirrorProcess(tmp_path / "cache", {}, *arguments) as running:
            with urllib.request.urlopen(f"{running.url}/readyz") as response:
                degraded = json.load(response)["degraded"]
            with urllib.request.urlopen(f"{running.url}/metrics") as response:
                (limit,) = [line for line in response.read().decode().splitlines() if line.startswith("mirror_cache_max_bytes ")]
            assert running.terminate() == 0
            return degraded, int(float(limit.split()[1])), running.log

    (told,), limit, log = await asyncio.to_thread(start, "--max-size", "10MiB")
    assert limit == 1024 * MIB
    assert "30 MiB of 40 MiB cached would be removed" in told
    assert "--yes" in told
    assert told in log
    assert sum(file.is_file() for file in (tmp_path / "cache/blobs").rglob("*")) == 4
    for arguments, expected in ((("--max-size", "25MiB"), 25), (("--max-size", "2MiB", "--yes"), 2)):
        degraded, limit, _ = await asyncio.to_thread(start, *arguments)
        assert (degraded, limit) == ([], expected * MIB)


def test_on_a_terminal_lines_are_for_people(tmp_path: Path) -> None:
    """A short line a request, where standard output is a terminal, and at once what cannot be reached and what to try; elsewhere JSON."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mirror", "serve", "--listen", "127.0.0.1:0", "--cache-dir", str(tmp_path / "cache")]
    for registry in DEFAULT_ENDPOINTS:
        command += ["--upstream", f"{registry}=http://127.0.0.1:1"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        told = ""

        def read_until(text: str) -> None:
            nonlocal told
            while text not in told:
                told += os.read(ours, 65536).decode()

        read_until("More: mirror doctor")
        assert "no registry can be reached now (127.0.0.1: Connection refused)" in " ".join(told.split())
        url = told.split("listening on ")[1].split()[0]
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/v2/library/app/manifests/1")
        read_until("docker.io/library/app:1 ")
        assert " GET docker.io/library/app:1 50" in told
        assert '{"time"' not in told
        running.terminate()
        running.wait(40)
    os.close(ours)


def test_why_it_cannot_start_is_said_in_words(tmp_path: Path) -> None:
    """Neither error numbers nor Python's forms: what is wrong, and what to change."""
    (tmp_path / "file").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        for listen, directory, expected in (
            (busy, tmp_path / "cache", f"another program listens on {busy}"),
            ("192.0.2.1:5000", tmp_path / "cache", "this machine does not have the address"),
            ("host.invalid:5000", tmp_path / "cache", "cannot be resolved"),
            ("127.0.0.1:0", tmp_path / "file", "a file is where a folder is needed"),
        ):
            for workers in ("1", "2"):
                done = mirror("serve", "--listen", listen, "--cache-dir", str(directory), "--workers", workers)
                assert done.returncode == 1
                assert expected in done.stderr
                assert "Errno" not in done.stderr and "Traceback" not in done.stderr


def test_wrong_commands_and_the_version() -> None:
    """A mistyped command names the one that was meant; the version has the commit, in a checkout; the help says how to get completion."""
    done = mirror("serv")
    assert done.returncode == 2
    assert "Did you mean 'serve'?" in done.stderr
    assert "See mirror --help." in mirror("qqqqq").stderr
    assert "_MIRROR_COMPLETE=bash_source" in mirror("--help").stdout
    told = mirror("--version").stdout
    if (Path(__file__).parents[2] / ".git").exists():
        assert "(commit " in told


def test_for_how_long_an_upstream_is_left_alone_is_told_everywhere(tmp_path: Path) -> None:
    """In seconds: in the client's error, /readyz, `stats` and `doctor`."""
    with MirrorProcess(tmp_path / "cache", {"docker.io": "http://127.0.0.1:1"}, SERVER__ACCESS_LOG="false") as running:
        told = re.compile(r"paused for \d+ s after failures")
        body = ""
        while not told.search(body):
            try:
                urllib.request.urlopen(f"{running.url}/v2/app/manifests/1")
            except urllib.error.HTTPError as error:
                with error:
                    body = error.read().decode()
        flags = ("--cache-dir", str(tmp_path / "cache"))
        said = re.compile(r"paused for \d+ s after failures|is down, and is asked again by the next request")
        with urllib.request.urlopen(f"{running.url}/readyz") as response:
            assert said.search(response.read().decode())
        assert said.search(mirror("stats", *flags).stdout)
        assert said.search(json.loads(mirror("stats", *flags, "--json").stdout)["degraded"][0])
        assert said.search(mirror("doctor", *flags).stdout)
