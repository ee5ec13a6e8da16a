"""Bundles made in memory, and a laptop's server in front of them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.images import Contents, Image, Referrer
from mirror.bundles.layout import Layout
from mirror.laptop.archive import Archive, find
from mirror.laptop.library import Library
from mirror.laptop.server import Server
from mirror.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.names import Digest, Repository, parse_reference
from tests.support.patience import PATIENCE

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def described(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


def manifest(
    layers: list[bytes], config: bytes = b'{"os":"linux","architecture":"amd64"}', **more: Any
) -> tuple[bytes, list[bytes]]:
    """A manifest, and the blobs that it names."""
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(CONFIG, config),
        "layers": [described(LAYER, layer) for layer in layers],
        **more,
    }
    return json.dumps(body).encode(), [config, *layers]


class Made:
    """A bundle that is being put together."""

    def __init__(self) -> None:
        self._contents = Contents()

    def hold(self, *blobs: bytes) -> None:
        self._contents.blobs.update({Digest.of(blob): blob for blob in blobs})

    def image(self, name: str, body: bytes, *blobs: bytes, media_type: str = OCI_MANIFEST, seen: float | None = None) -> Digest:
        """Adds an image with those of its blobs that are to be in the bundle. Returns its digest."""
        repository, reference = _split(name)
        self.hold(body, *blobs)
        root = Descriptor(media_type, Digest.of(body), len(body))
        self._contents.images.append(Image(repository, parse_reference(reference), root, ("linux/amd64",), seen=seen))
        return root.digest

    def referrer(self, name: str, body: bytes, subject: Digest, *blobs: bytes) -> Digest:
        repository, reference = _split(name)
        self.hold(body, *blobs)
        root = Descriptor(OCI_MANIFEST, Digest.of(body), len(body))
        self._contents.referrers.append(Referrer(repository, parse_reference(reference), root, subject))
        return root.digest

    def write(self, path: Path, size: int | None = None) -> bytes:
        """Writes it, in pieces of `size` bytes. Returns its bytes."""
        content = b"".join(piece for piece in Layout(self._contents).pieces if isinstance(piece, bytes))
        if size is None:
            path.write_bytes(content)
        else:
            for number, start in enumerate(range(0, len(content), size)):
                path.with_name(f"{path.name}.{number:03}").write_bytes(content[start : start + size])
        return content


def index(*bodies: bytes) -> bytes:
    entries = [{**described(OCI_MANIFEST, body), "platform": {"os": "linux", "architecture": "amd64"}} for body in bodies]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def _split(name: str) -> tuple[Repository, str]:
    at = "@" if "@" in name else ":"
    repository, _, reference = name.rpartition(at)
    registry, _, path = repository.partition("/")
    return Repository.parse(registry, path), reference


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        (one,) = self.json["errors"]
        return self.status, one["code"]


class Client:
    """Sends requests to a server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __call__(self, method: str, target: str, **headers: str) -> Answer:
        """`headers` with underscores instead of hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=PATIENCE)
        try:
            connection.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, target: str, **headers: str) -> Answer:
        return self("GET", target, **headers)


def library_of(folder: Path) -> Library:
    library = Library()
    library.add([Archive(path) for path in find(str(folder))])
    return library


class Laptops:
    """Starts servers for the bundles of a folder."""

    def __init__(self) -> None:
        self._servers: list[tuple[Server, threading.Thread]] = []

    def __call__(self, folder: Path) -> Client:
        server = Server("127.0.0.1", 0, library_of(folder))
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        self._servers.append((server, thread))
        return Client(server)

    def stop(self) -> None:
        for server, thread in self._servers:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def serve() -> Iterator[Laptops]:
    laptops = Laptops()
    yield laptops
    laptops.stop()
