"""Clients that push: all of them in one process, a thread each. Each pushes an image of its own with one layer, as docker does: POST, PATCH, PUT for each blob, then the manifest."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from urllib.parse import urljoin, urlsplit

from benchmarks.shaping import ROOT
from mirror.manifests import OCI_MANIFEST

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_PIECE = 1024 * 1024


@dataclass(frozen=True)
class Push:
    """What every client does."""

    url: str
    repositories: str
    """How the names of theirs begin."""
    size: int
    """Of a layer, in bytes."""
    clients: int
    limit: float
    """Seconds until those that are not done are given up."""


@dataclass
class Pusher:
    """How one client fared; seconds from the start of all of them."""

    done: float | None = None
    fault: str = ""


def push(task: Push) -> list[Pusher]:
    """All clients at once, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.pushes", json.dumps(asdict(task))]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, timeout=task.limit + 60)
    return [Pusher(**pusher) for pusher in json.loads(finished.stdout)]


class _Running:
    """One client while it runs."""

    def __init__(self, task: Push, number: int) -> None:
        parts = urlsplit(task.url)
        self.state = Pusher()
        self._task = task
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=task.limit)
        self._path = f"/v2/{task.repositories}{number}"
        self._random = os.urandom(min(task.size, _PIECE))
        hasher = hashlib.sha256()
        for piece in self._layer():
            hasher.update(piece)
        self._digest = f"sha256:{hasher.hexdigest()}"

    def run(self, began: float) -> None:
        time.sleep(max(0.0, began - time.perf_counter()))
        try:
            self._blob(self._digest, self._task.size, self._layer())
            config = json.dumps({"architecture": "amd64", "os": "linux", "layer": self._digest}).encode()
            described = f"sha256:{hashlib.sha256(config).hexdigest()}"
            self._blob(described, len(config), iter([config]))
            manifest = {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": CONFIG_TYPE, "digest": described, "size": len(config)},
                "layers": [{"mediaType": _LAYER_TYPE, "digest": self._digest, "size": self._task.size}],
            }
            body = json.dumps(manifest).encode()
            self._send("PUT", f"{self._path}/manifests/1", iter([body]), len(body), 201, OCI_MANIFEST)
        except Exception as error:
            self.state.fault = repr(error)
        else:
            self.state.done = time.perf_counter() - began

    def _layer(self) -> Iterator[bytes]:
        piece = self._random
        for start in range(0, self._task.size, _PIECE):
            yield piece[: self._task.size - start]
            # Rotated, so that no two megabytes are the same.
            piece = piece[4099:] + piece[:4099]

    def _blob(self, digest: str, size: int, pieces: Iterator[bytes]) -> None:
        location = self._send("POST", f"{self._path}/blobs/uploads/", iter(()), 0, 202)
        location = self._send("PATCH", location, pieces, size, 202)
        self._send("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}", iter(()), 0, 201)

    def _send(
        self, method: str, path: str, body: Iterator[bytes], size: int, wanted: int, kind: str = "application/octet-stream"
    ) -> str:
        """Returns the Location, as a path. Raises RuntimeError for another status than the one that is `wanted`, OSError, HTTPException."""
        self._connection.request(method, path, body, {"Content-Length": str(size), "Content-Type": kind})
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != wanted:
            raise RuntimeError(f"{method} {path} was answered with {answer.status}: {said[:200]!r}")
        parts = urlsplit(urljoin(path, answer.headers.get("Location", "")))
        return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _main(task: Push) -> None:
    clients = [_Running(task, number) for number in range(task.clients)]
    began = time.perf_counter() + 0.05 + task.clients / 2000
    threads = [threading.Thread(target=client.run, args=[began], daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + task.limit - time.perf_counter()))
    print(json.dumps([asdict(client.state) for client in clients]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main(Push(**json.loads(sys.argv[1])))
