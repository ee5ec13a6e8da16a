"""The clients: all of one pull in one process, a thread for each download, so light that they are not what is measured.

Each client pulls as dockerd does: the manifest where there is one, then the layers, so many at once over connections that are kept, and resumes with a Range where
a body ends early. The first ones hash what they get; the others have the kernel throw it away uncopied (``MSG_TRUNC``, tcp(7)), as if they were on other machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from benchmarks.shaping import ROOT

_AT_ONCE = 3
"""Layers that a client downloads at once, as dockerd's max-concurrent-downloads."""
_PAUSE = 0.1
"""Seconds before a download is resumed that brought nothing at all."""


@dataclass(frozen=True)
class Pull:
    """What every client does."""

    url: str
    manifest: str | None
    """Its path; fetched first."""
    layers: dict[str, int]
    """Digests and sizes, to be found under `blobs`."""
    blobs: str
    clients: int
    hashed: int
    """How many of the clients hash what they get."""
    limit: float
    """Seconds until those that are not done are given up."""


@dataclass
class Client:
    """How one client fared; seconds from the start of all of them."""

    done: float | None = None
    first_byte: float | None = None
    """Of the first layer's body."""
    resumed: int = 0
    fault: str = ""


def pull(task: Pull) -> list[Client]:
    """All clients at once, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.clients", json.dumps(asdict(task))]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, timeout=task.limit + 60)
    return [Client(**client) for client in json.loads(finished.stdout)]


_UNTOUCHED = memoryview(bytearray(4 * 1024 * 1024))
"""Where nothing is read, all have the same scratch memory."""


class _Short(Exception):
    """A body that ended early, an error of the server's, or no answer at all: to be tried again."""


@dataclass
class _Connection:
    address: tuple[str, int]
    scratch: memoryview
    socket: socket.socket | None = None

    def get(self, path: str, start: int, accept: str = "*/*") -> tuple[int, int, bytes]:
        """Status and length of the answer, and what came of the body already. Raises _Short."""
        ranged = f"Range: bytes={start}-\r\n" if start else ""
        request = f"GET {path} HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\nAccept: {accept}\r\n{ranged}\r\n"
        try:
            if self.socket is None:
                self.socket = socket.create_connection(self.address)
            self.socket.sendall(request.encode())
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := self.socket.recv(4096)):
                    raise _Short
                head += data
        except OSError:
            raise _Short from None
        head, _, body = head.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1]), int(fields["content-length"]), body

    def body(self, wanted: int, hasher: hashlib._Hash | None) -> int:
        """Reads on; the bytes that came. Raises _Short where there are none."""
        assert self.socket is not None
        try:
            if hasher is None:
                count = self.socket.recv_into(self.scratch, min(wanted, len(self.scratch)), socket.MSG_TRUNC)
            else:
                count = self.socket.recv_into(self.scratch, min(wanted, len(self.scratch)))
                hasher.update(self.scratch[:count])
        except OSError:
            raise _Short from None
        if not count:
            raise _Short
        return count

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


@dataclass
class _Running:
    """One client while it runs."""

    task: Pull
    began: float
    hashes: bool
    state: Client = field(default_factory=Client)
    left: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def run(self) -> None:
        try:
            connection = self._connection()
            if self.task.manifest is not None:
                self._manifest(connection, self.task.manifest)
            for digest in self.task.layers:
                self.left.put(digest)
            others = [
                threading.Thread(target=self._layers, args=[self._connection()], daemon=True)
                for _ in range(min(_AT_ONCE, len(self.task.layers)) - 1)
            ]
            for other in others:
                other.start()
            self._layers(connection)
            for other in others:
                other.join()
        except Exception as error:
            self.state.fault = repr(error)
        if not self.state.fault:
            self.state.done = time.perf_counter() - self.began

    def _connection(self) -> _Connection:
        parts = urlsplit(self.task.url)
        scratch = memoryview(bytearray(1024 * 1024)) if self.hashes else _UNTOUCHED
        return _Connection((parts.hostname or "", parts.port or 80), scratch)

    def _manifest(self, connection: _Connection, path: str) -> None:
        while True:
            try:
                status, length, body = connection.get(path, 0, "application/vnd.docker.distribution.manifest.v2+json")
                got = len(body)
                while got < length:
                    got += connection.body(length - got, None)
            except _Short:
                connection.close()
                time.sleep(_PAUSE)
                continue
            if status != 200:
                raise RuntimeError(f"{path} was answered with {status}")
            return

    def _layers(self, connection: _Connection) -> None:
        try:
            while True:
                self._layer(connection, self.left.get_nowait())
        except queue.Empty:
            connection.close()
        except Exception as error:
            self.state.fault = repr(error)

    def _layer(self, connection: _Connection, digest: str) -> None:
        size, got = self.task.layers[digest], 0
        hasher = hashlib.sha256() if self.hashes else None
        while got < size:
            before = got
            try:
                status, length, body = connection.get(self.task.blobs + digest, got)
                if status >= 500:
                    raise _Short
                if status == 200 and got:
                    # It knows no ranges: from the beginning.
                    got, hasher = 0, hashlib.sha256() if self.hashes else None
                elif status not in (200, 206):
                    raise RuntimeError(f"{digest} was answered with {status}")
                if got + length != size:
                    raise RuntimeError(f"{digest} from byte {got} was answered with a length of {length}")
                if hasher is not None:
                    hasher.update(body)
                got += self._came(len(body))
                while got < size:
                    got += self._came(connection.body(size - got, hasher))
            except _Short:
                connection.close()
                self.state.resumed += 1
                if got <= before:
                    time.sleep(_PAUSE)
        if hasher is not None and f"sha256:{hasher.hexdigest()}" != digest:
            raise RuntimeError(f"{digest} came with other bytes")

    def _came(self, count: int) -> int:
        if count and self.state.first_byte is None:
            self.state.first_byte = time.perf_counter() - self.began
        return count


def _main(task: Pull) -> None:
    threading.stack_size(256 * 1024)
    began = time.perf_counter() + 0.05 + task.clients / 2000
    clients = [_Running(task, began, number < task.hashed) for number in range(task.clients)]
    threads = []
    for client in clients:
        thread = threading.Thread(target=_at, args=[began, client.run], daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, began + task.limit - time.perf_counter()))
    print(json.dumps([asdict(client.state) for client in clients]), flush=True)
    os._exit(0)


def _at(moment: float, run: Callable[[], None]) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))
    run()


if __name__ == "__main__":
    _main(Pull(**json.loads(sys.argv[1])))
