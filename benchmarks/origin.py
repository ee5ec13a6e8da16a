"""What is pulled: fresh images in a real registry."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from mirror.manifests import DOCKER_MANIFEST
from tests.support.images import digest_of, send
from tests.support.programs import DockerRegistry

REPOSITORY = "library/bench"
BLOBS = f"/v2/{REPOSITORY}/blobs/"
_MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Image:
    """One that the origin has, and nobody else."""

    tag: str
    digest: str
    layers: dict[str, int]
    """Digests and sizes."""

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(self.layers.values())

    def manifest(self, reference: str) -> str:
        """Its path."""
        return f"/v2/{REPOSITORY}/manifests/{reference}"


class Origin:
    """Debian's docker-registry over a folder."""

    def __init__(self, folder: Path) -> None:
        self._registry = DockerRegistry(folder, level="error")
        self.url = self._registry.url
        self.blobs = folder / "data" / "docker" / "registry" / "v2" / "blobs"
        """Where distribution keeps them ("storage/paths.go")."""
        self._made = 0

    def stop(self) -> None:
        self._registry.stop()

    def add_image(self, layers: int, size: int) -> Image:
        """An image of so many layers, each of about so many random bytes; dockerd can unpack it."""
        self._made += 1
        tag = f"v{self._made}"
        described = [self._add_blob(_tar(f"{tag}-{number}", size)) for number in range(layers)]
        rootfs = {"type": "layers", "diff_ids": [digest for digest, _ in described]}
        settings = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]}, "rootfs": rootfs}
        config, config_size = self._add_blob(iter([json.dumps({**settings, "created": "2024-01-01T00:00:00Z"}).encode()]))
        kind = "application/vnd.docker.image.rootfs.diff.tar"
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": config, "size": config_size},
            "layers": [{"mediaType": kind, "digest": digest, "size": bytes_} for digest, bytes_ in described],
        }
        body = json.dumps(manifest).encode()
        send("PUT", f"{self.url}/v2/{REPOSITORY}/manifests/{tag}", body, {"Content-Type": DOCKER_MANIFEST}).close()
        return Image(tag, digest_of(body), dict(described))

    def _add_blob(self, pieces: Iterator[bytes]) -> tuple[str, int]:
        """Its digest and size."""
        with send("POST", f"{self.url}{BLOBS}uploads/", b"", {}) as begun:
            location = urljoin(self.url, begun.headers["Location"])
        hasher, size = hashlib.sha256(), 0
        for data in pieces:
            hasher.update(data)
            size += len(data)
            with send("PATCH", location, data, {"Content-Type": "application/octet-stream"}) as answer:
                location = urljoin(self.url, answer.headers["Location"])
        digest = f"sha256:{hasher.hexdigest()}"
        joined = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        send("PUT", joined, b"", {}).close()
        return digest, size


def _tar(name: str, size: int) -> Iterator[bytes]:
    """A layer with one file of `size` random bytes, in pieces."""
    entry = tarfile.TarInfo(f"{name}.bin")
    entry.size, entry.mode = size, 0o644
    yield entry.tobuf()
    piece = os.urandom(_MEGABYTE)
    for start in range(0, size, _MEGABYTE):
        yield piece[: size - start]
        # Rotated, so that no two megabytes are the same.
        piece = piece[4099:] + piece[:4099]
    # Padding, and the two empty blocks of the end (tar(5)).
    yield bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
