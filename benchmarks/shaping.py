"""A link, modelled by a TCP relay in user space: ``Link(target, Shape(…))`` is a URL that behaves as if the target were that far away.

What is modelled, so that everybody knows what a figure means:

- *Round trips.* Opening a connection costs one, and so does each request until the first byte of its answer: what a client sends reaches the target one
  ``rtt`` later, the first of it on a connection two. Bytes of an answer that is under way do not wait any more.
- *Throughput* is limited only by the caps of each connection and of the link as a whole; connections share the link evenly. There is no slow start and no
  loss, which favours whoever uses one connection.
- *Cuts.* Each connection ends after a random number of an answer's bytes, exponentially distributed, from a fixed seed. What was let through has arrived.

The relay is a process of its own, so that it costs nobody's CPU seconds, with two threads a connection. It counts the bytes that it lets through.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]

_BUFFER = 256 * 1024
"""Of the kernel, for each connection: what it holds is counted, though it may never be read."""
_BURST = 0.02
"""Seconds that a sender may catch up when it was woken late."""


@dataclass(frozen=True)
class Shape:
    """A link's."""

    rtt: float = 0.0
    """Seconds."""
    per_connection: float | None = None
    """Bytes per second."""
    whole: float | None = None
    """Bytes per second, of all connections together."""
    cut: float | None = None
    """Bytes of answers, on average, after which a connection is cut."""

    def __str__(self) -> str:
        parts = [f"{self.rtt * 1000:.0f} ms"] if self.rtt else []
        if self.per_connection:
            parts.append(f"{self.per_connection / 1e6:g} MB/s per connection")
        if self.whole:
            parts.append(f"{self.whole / 1e6:g} MB/s in all")
        if self.cut:
            parts.append(f"cut every {self.cut / 1e6:g} MB")
        return ", ".join(parts) or "unshaped loopback"


CLEAN = Shape()


class Link:
    """The relay as its user sees it."""

    def __init__(self, target: str, shape: Shape) -> None:
        command = [sys.executable, "-m", "benchmarks.shaping", target, json.dumps(asdict(shape))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.url = f"http://127.0.0.1:{self._reply()}"

    @property
    def received(self) -> int:
        """Bytes that came from the target and were let through, so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("", timeout=10)


class _Pace:
    """So many bytes per second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    def reserve(self, count: int) -> float:
        """When so many bytes more will have gone through, on the monotonic clock."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - _BURST) + count / self._rate
            return self._free_at


class _Relay:
    def __init__(self, target: str, shape: Shape) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname or "", parts.port or 80
        self._shape = shape
        self._whole = _Pace(shape.whole) if shape.whole else None
        # About 10 ms worth of bytes at a time, so that what is slow is smooth.
        slowest = min(shape.per_connection or 1e9, shape.whole or 1e9)
        self._piece = min(_BUFFER, max(4096, int(slowest / 100)))
        self._chance = random.Random(1)
        self._lock = threading.Lock()
        self.let_through = 0

    def listen(self) -> int:
        """Serves from now on; the port."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._serve, args=[client, time.monotonic()], daemon=True).start()

    def _serve(self, client: socket.socket, accepted: float) -> None:
        with client, socket.socket() as target:
            target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            target.connect(self._target)
            for end in (client, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asking = threading.Thread(target=self._ask, args=[client, target, accepted + self._shape.rtt], daemon=True)
            asking.start()
            with contextlib.suppress(OSError):
                self._answer(target, client)
            _hang_up(client, target)
            asking.join()

    def _ask(self, client: socket.socket, target: socket.socket, connected: float) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                _sleep_until(max(time.monotonic(), connected) + self._shape.rtt)
                target.sendall(data)
        _hang_up(client, target)

    def _answer(self, target: socket.socket, client: socket.socket) -> None:
        paces = [self._whole] if self._whole else []
        if self._shape.per_connection:
            paces.append(_Pace(self._shape.per_connection))
        view = memoryview(bytearray(self._piece))
        left = self._bytes_until_cut()
        while count := target.recv_into(view[: min(self._piece, left)]):
            if paces:
                _sleep_until(max([pace.reserve(count) for pace in paces]))
            # Before they are sent: whoever has them may ask at once how many there were.
            with self._lock:
                self.let_through += count
            client.sendall(view[:count])
            left -= count
            if not left:
                break

    def _bytes_until_cut(self) -> int:
        if self._shape.cut is None:
            return sys.maxsize
        with self._lock:
            return 1 + int(self._chance.expovariate(1 / self._shape.cut))


def _sleep_until(due: float) -> None:
    if (seconds := due - time.monotonic()) > 0:
        time.sleep(seconds)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _main(target: str, shape: str) -> None:
    """Prints its port, and for each line that it is sent how many bytes it has let through; ends when there are no more lines."""
    threading.stack_size(256 * 1024)
    relay = _Relay(target, Shape(**json.loads(shape)))
    print(relay.listen(), flush=True)
    for _ in sys.stdin:
        print(relay.let_through, flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
