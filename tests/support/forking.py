"""Starts ``mirror`` as a process of its own without the half second of CPU that its imports take.

A server (`tests.support.forked`) imports the program once for each process of pytest, and forks for each start. What it forks runs to its end as
``python -m mirror`` does, with its own process ID, files, signals and exit status. Only what imports do is not seen: tests/test_start.py holds that.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROGRAM = [sys.executable, "-m", "mirror"]
_READ_EARLY = re.compile("PYTHON|LC_|LANG|LD_|MALLOC_|TZ|SSL_|OPENSSL_|PROMETHEUS_")
"""Variables that the interpreter, a C library or an import reads."""


class Forked:
    """A process of ``mirror`` in a session of its own, with the methods of subprocess.Popen that tests use."""

    def __init__(self, arguments: Sequence[str], files: Sequence[int], environment: Mapping[str, str]) -> None:
        """`files` are descriptors for its standard input, output and errors."""
        self.args = [*PROGRAM, *arguments]
        self.returncode: int | None = None
        self._answers, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with its:
            request = {"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd()), "umask": _umask()}
            _server().fork(request, [*files, its.fileno()])
        self.pid = self._answer()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = self._answer()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._answers.close()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._answers.close()

    def _answer(self) -> int:
        answer = self._answers.recv(32)
        assert answer, "the server that forks has ended"
        return int(answer)


class _Server:
    def __init__(self) -> None:
        self.environment = _read_early(os.environ)
        self._requests, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
        command, root = [sys.executable, "-m", "tests.support.forked"], Path(__file__).parents[2]
        with its:
            self._process = subprocess.Popen(
                command, stdin=its.fileno(), stdout=subprocess.DEVNULL, cwd=root, start_new_session=True
            )
        atexit.register(self._stop)

    def fork(self, request: Mapping[str, object], descriptors: Sequence[int]) -> None:
        socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)

    def _stop(self) -> None:
        self._requests.close()
        self._process.wait()


_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        return _started()


@functools.cache
def _started() -> _Server:
    return _Server()


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork of the server is the same as a start: it is this program, and imports would read what the server's have read."""
    return [*command[:3]] == PROGRAM and _read_early(environment) == _server().environment


def run(
    arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end, its standard streams being pipes. Kills it after `seconds`, and raises subprocess.TimeoutExpired."""
    command = [*PROGRAM, *arguments]
    if not can_fork(command, environment):
        return subprocess.run(command, input=stdin, capture_output=True, timeout=seconds, check=False, env=environment)
    (its_input, input_), (output, its_output), (errors, its_errors) = os.pipe(), os.pipe(), os.pipe()
    files = its_input, its_output, its_errors
    with ThreadPoolExecutor(2) as threads:
        try:
            process = Forked(arguments, files, environment)
        finally:
            for descriptor in files:
                os.close(descriptor)
            printed = [threads.submit(_read, descriptor) for descriptor in (output, errors)]
            # It may end without reading.
            with contextlib.suppress(BrokenPipeError), open(input_, "wb", buffering=0) as file:
                file.write(stdin)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, status, *(one.result() for one in printed))


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _READ_EARLY.match(name)}


def _umask() -> int:
    """What os.umask returns, without a moment in which it is another one for other threads (proc(5))."""
    return int(Path("/proc/self/status").read_text().partition("Umask:")[2].split()[0], 8)
