"""The access log: one line of JSON for each request, on standard output; on a terminal, a short line for people, without health checks.

A thread formats and writes the lines, so that neither a slow terminal nor a full pipe delays a request. If it falls far behind, lines are dropped and counted.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, TextIO

from mirror.units import format_size

_MOST_WAITING = 100_000
_PAUSE = 0.2
_ATOMIC = 4096
"""Bytes that a process can write to a pipe in one piece, so that workers do not write into each other's lines (PIPE_BUF, pipe(7))."""

_HEALTH = ("/healthz", "/readyz", "/metrics", "/v2/")
"""Paths that monitoring requests every few seconds, and clients before each pull."""


class AccessLog:
    """Writes the requests that are passed to `note`."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._line = _short_line if stream.isatty() else _line
        self._waiting: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._dropped = 0
        self.running = True
        """False once nothing reads the stream any more."""
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def note(
        self,
        client: str,
        method: str,
        repository: str,
        reference: str,
        path: str,
        status: int,
        size: int,
        seconds: float,
        cache: str,
        agent: str,
        complete: bool,
    ) -> None:
        """Adds a line for a request, for a `repository` or else a `path`. `size` is the bytes of body sent; `complete` is False if the body was cut short."""
        if not self.running:
            return
        if self.waiting < _MOST_WAITING:
            self._waiting.put(
                (time.time(), client, method, repository, reference, path, status, size, seconds, cache, agent, complete)
            )
        else:
            self._dropped += 1

    @property
    def waiting(self) -> int:
        """Lines that are not written yet."""
        return self._waiting.qsize()

    def close(self) -> None:
        """Writes the lines that are left, for a second at most."""
        self._waiting.put(None)
        self._thread.join(1.0)

    def _write(self) -> None:
        open_ = True
        while open_:
            lines = []
            entry = self._waiting.get()
            while True:
                if entry is None:
                    open_ = False
                    break
                lines.append(self._line(entry))
                if self._waiting.empty():
                    break
                entry = self._waiting.get()
            if self._dropped:
                lines.append(json.dumps({"time": _time(time.time()), "dropped_lines": self._dropped}) + "\n")
                self._dropped = 0
            try:
                for piece in _pieces(lines):
                    self._stream.write(piece)
                    self._stream.flush()
            except (OSError, ValueError):
                # Nothing reads the log any more. Requests go on.
                self.running = False
                self._waiting = SimpleQueue()
                return
            if open_:
                # Lines are written in batches: one write for each would cost as much as a request.
                time.sleep(_PAUSE)


def _pieces(lines: list[str]) -> Iterator[str]:
    """Joins lines, which are ASCII, into pieces of up to `_ATOMIC` bytes."""
    piece: list[str] = []
    size = 0
    for line in lines:
        if size + len(line) > _ATOMIC and piece:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield "".join(piece)


@functools.lru_cache(maxsize=8)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def _time(moment: float) -> str:
    return f"{_second(int(moment))}.{int(moment * 1000) % 1000:03d}Z"


_quoted = json.JSONEncoder().encode
"""What ``json.dumps`` calls in the end, without the three quarters of its time that go before."""


def _line(entry: tuple[Any, ...]) -> str:
    moment, client, method, repository, reference, path, status, size, seconds, cache, agent, complete = entry
    return (
        f'{{"time":"{_time(moment)}","client":{_quoted(client)},"method":{_quoted(method)},"repository":{_quoted(repository)},'
        f'"reference":{_quoted(reference)},"path":{_quoted(path)},"status":{status},"bytes":{size},"duration":{seconds:.6f},"cache":{_quoted(cache)},'
        f'"agent":{_quoted(agent)},"complete":{"true" if complete else "false"}}}\n'
    )


def _short_line(entry: tuple[Any, ...]) -> str:
    moment, client, method, repository, reference, path, status, size, seconds, cache, _, complete = entry
    if path in _HEALTH and status == 200:
        return ""
    name = path or repository + (f"@{reference[:19]}" if reference.startswith("sha") else f":{reference}" if reference else "")
    result = cache.removeprefix("mirror; ").partition(";")[0]
    rest = "" if complete else ", cut short"
    line = (
        f"{time.strftime('%H:%M:%S', time.localtime(moment))} {client} {method} {name or '-'} {status} {format_size(size)} in {seconds:.2f} s {result}".rstrip()
        + rest
    )
    # What clients send must not control a terminal.
    return "".join(one if one.isprintable() else "?" for one in line) + "\n"
