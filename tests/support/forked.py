"""The server of `tests.support.forking`: imports ``mirror``, and forks for each request that comes over its standard input, a SOCK_SEQPACKET socket.

A request is JSON, and four descriptors: standard input, output and errors, and a socket for the answers, which are the process ID and the exit status. What is
forked leaves this module as ``python -m mirror`` begins, with nothing of the server's but the modules.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import socket
import sys
from pathlib import Path
from typing import Any, TextIO

import mirror
from mirror.cli import COMMANDS

_LATER = ("mirror.app", "mirror.wiring", "mirror.cli.reachability", "mirror.workers.parent")
"""What commands import when they run."""
_LARGEST = 1 << 20
_HIGHEST = 1 << 16
"""Beyond every descriptor of the server."""


def _serve(requests: socket.socket) -> None:
    """Returns in what was forked only, and exits when nobody is left who could ask."""
    running: dict[int, tuple[int, int]] = {}
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                pid, answers = running.pop(ready)
                _answer(answers, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(answers)
                os.close(ready)
                continue
            request, descriptors, _, _ = socket.recv_fds(requests, _LARGEST, 4)
            if not request:
                sys.exit()
            if (pid := os.fork()) == 0:
                requests.detach()
                _become(json.loads(request), descriptors)
                return
            *files, answers = descriptors
            for file in files:
                os.close(file)
            _answer(answers, pid)
            ended = os.pidfd_open(pid)
            running[ended] = pid, answers
            poll.register(ended, select.POLLIN)


def _answer(socket_: int, number: int) -> None:
    # The test may have ended without a look at what it started.
    with contextlib.suppress(OSError):
        os.write(socket_, str(number).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Makes this process what was asked for, up to the first line of the program."""
    os.setsid()
    for standard, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, standard)
    os.closerange(3, _HIGHEST)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = os.getcwd()
    sys.orig_argv[:] = [sys.executable, "-m", "mirror", *request["arguments"]]
    sys.argv[:] = [str(Path(mirror.__file__).with_name("__main__.py")), *request["arguments"]]
    sys.stdin = _opened(0, sys.stdin)
    sys.stdout = _opened(1, sys.stdout)
    sys.stderr = _opened(2, sys.stderr)


def _opened(descriptor: int, like: TextIO) -> TextIO:
    """A standard stream on what its descriptor is now."""
    assert isinstance(like, io.TextIOWrapper)
    return io.TextIOWrapper(
        open(descriptor, "rb" if descriptor == 0 else "wb", closefd=False),
        encoding=like.encoding,
        errors=like.errors,
        newline=None if descriptor == 0 else "\n",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
        write_through=like.write_through,
    )


if __name__ == "__main__":
    for name in (*(f"mirror.cli.{module}" for module in COMMANDS.values()), *_LATER):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=os.dup(0)))
    runpy.run_module("mirror", run_name="__main__", alter_sys=True)
