"""Mirrors under test: in this process, and as a process of their own that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from mirror.names import Digest
from tests.support.forking import PROGRAM, Forked, can_fork
from tests.support.patience import PATIENCE


@dataclass(frozen=True)
class Got:
    """A response that was read to its end; `cut` when that end came too early."""

    status: int
    headers: Any
    body: bytes
    cut: bool = False

    @property
    def cache(self) -> str:
        return str(self.headers.get("Cache-Status"))

    def digest(self) -> Digest:
        return Digest.of(self.body)


@dataclass
class Mirror:
    """A mirror in this event loop."""

    url: str
    session: aiohttp.ClientSession
    directory: Path
    stack: contextlib.AsyncExitStack = field(repr=False)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Got:
        """Asks; header names have underscores for hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, path, headers=sent, allow_redirects=False) as response:
            return await read_to_end(response)

    async def head(self, path: str, **headers: str) -> Got:
        return await self.get(path, "HEAD", **headers)

    async def slow_reader(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has asked for `path`, has the headers, and whose kernel takes next to nothing unasked."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=client, limit=1024)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = (await self.get("/metrics")).body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)

    def cached(self, digest: Digest) -> bool:
        return (self.directory / "blobs" / digest.algorithm / digest.hex).exists()

    def spooled(self) -> list[str]:
        """What lies in the spool."""
        return sorted(os.listdir(self.directory / "spool"))

    async def until_cached(self, digest: Digest) -> None:
        """Waits until a download is complete and kept."""
        await until(lambda: self.cached(digest))

    async def mended(self) -> None:
        """Waits until files and catalog are in step: rows that a test adds without files are then left alone."""
        await until(lambda: _was_held(self.directory / "catalog" / "mend.lock"))

    async def stop(self) -> None:
        await self.stack.aclose()


class StartMirror(Protocol):
    """The fixture `start`: starts a mirror in this event loop, in front of the test's upstream."""

    async def __call__(
        self,
        directory: Path | None = None,
        endpoints: list[str] | None = None,
        settings: dict[str, Any] | None = None,
        **cache: Any,
    ) -> Mirror:
        """`directory` is the cache's, `endpoints` are docker.io's, `settings` are tables of settings by name; the rest are settings of the table `cache`."""


def _was_held(lock: Path) -> bool:
    """It is there, as it is from the moment on that it is held, and nobody holds it any more."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    return True


async def read_to_end(response: aiohttp.ClientResponse) -> Got:
    """Reads a response whose headers are here."""
    body, cut = bytearray(), False
    try:
        while data := await response.content.readany():
            body += data
    except aiohttp.ClientPayloadError:
        cut = True
    return Got(response.status, response.headers, bytes(body), cut)


async def until(condition: Any) -> None:
    """Waits for something that must come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


def noted(cache: Path, digest: Digest) -> int:
    """Where the spool's journal says that the bytes from 0 on end."""
    journal = cache / "spool" / f"sha256-{digest.hex}.have"
    records = journal.read_bytes() if journal.exists() else b""
    end = 0
    for offset in range(16, len(records) - 15, 16):
        start, stop = (int.from_bytes(records[offset + shift : offset + shift + 8], "little") for shift in (0, 8))
        if start == end:
            end = stop
    return end


class MirrorProcess:
    """``mirror serve`` as a user starts it, on a free port."""

    def __init__(self, directory: Path, upstreams: dict[str, str | list[str]], *arguments: str, **environment: str) -> None:
        """`upstreams`: registry to URL or URLs; keyword arguments are MIRROR_… variables without the prefix."""
        self.directory = directory
        self._command = [*PROGRAM, "serve", "--listen", "127.0.0.1:0", "--cache-dir", str(directory)]
        for registry, urls in upstreams.items():
            for url in [urls] if isinstance(urls, str) else urls:
                self._command += ["--upstream", f"{registry}={url}"]
        self._command += arguments
        self._environment = {f"MIRROR_{key}": value for key, value in environment.items()}
        self._process: Forked | subprocess.Popen[bytes] | None = None
        self.url = ""
        self._log = directory.parent / f"{directory.name}.log"

    def limit_descriptors(self, limit: int) -> MirrorProcess:
        """Sets how many descriptors it may have (ulimit -n), from its next start on."""
        return self.run_under("prlimit", f"--nofile={limit}:{limit}")

    def run_under(self, *program: str) -> MirrorProcess:
        """Sets a program that runs the mirror as its command, from its next start on. It must replace itself by the mirror, or forward signals."""
        self._command = [*program, *self._command]
        return self

    def __enter__(self) -> MirrorProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """The process IDs of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        """Starts, or starts again on the same directory. Fails the test when it does not come up."""
        begin = self._log.stat().st_size if self._log.exists() else 0
        environment = {**os.environ, **self._environment}
        with open(self._log, "ab") as log, open(os.devnull) as nothing:
            if can_fork(self._command, environment):
                files = nothing.fileno(), log.fileno(), log.fileno()
                self._process = Forked(self._command[len(PROGRAM) :], files, environment)
            else:
                self._process = subprocess.Popen(
                    self._command, stdin=nothing, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        deadline = time.monotonic() + PATIENCE
        while True:
            for line in self._log.read_bytes()[begin:].decode(errors="replace").splitlines(keepends=True):
                if line.startswith("listening on ") and line.endswith("\n"):
                    self.url = line.split()[2]
                    return
            assert self._process.poll() is None, f"the mirror did not start:\n{self.log[begin:]}"
            assert time.monotonic() < deadline, f"the mirror is not up after {PATIENCE:g} s:\n{self.log[begin:]}"
            time.sleep(0.01)

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(PATIENCE)

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def wait(self) -> int:
        """Waits for it to end by itself; returns the exit status."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)
