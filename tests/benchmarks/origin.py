"""What is pulled: fresh blobs and a small image in a real registry."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from urllib.parse import urljoin

from mirror.manifests import DOCKER_MANIFEST
from tests.support.images import Image, digest_of, push, send
from tests.support.programs import DockerRegistry

REPOSITORY = "library/bench"


class Origin:
    """Debian's docker-registry over a folder."""

    def __init__(self, folder: Path) -> None:
        self._registry = DockerRegistry(folder, level="error")
        self.url = self._registry.url

    def stop(self) -> None:
        self._registry.stop()

    def add_image(self) -> str:
        """A small image with the tag ``latest``; its digest."""
        image = Image()
        config, layer = b'{"architecture":"amd64","os":"linux"}', os.urandom(1000)
        image.blobs = {digest_of(config): config, digest_of(layer): layer}
        body = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": digest_of(config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": digest_of(layer), "size": len(layer)}
            ],
        }
        image.manifests.append((DOCKER_MANIFEST, json.dumps(body).encode()))
        push(self.url, REPOSITORY, "latest", image)
        return image.digest

    def add_blob(self, size: int) -> str:
        """A fresh blob of so many random bytes; its digest."""
        piece = os.urandom(1024 * 1024)
        with send("POST", f"{self.url}/v2/{REPOSITORY}/blobs/uploads/", b"", {}) as begun:
            location = urljoin(self.url, begun.headers["Location"])
        hasher, left = hashlib.sha256(), size
        first = True
        while left:
            data = (os.urandom(32) + piece[32:] if first else piece)[: min(left, len(piece))]
            first = False
            hasher.update(data)
            left -= len(data)
            # Rotated, so that no two megabytes are the same.
            piece = piece[4099:] + piece[:4099]
            with send("PATCH", location, data, {"Content-Type": "application/octet-stream"}) as answer:
                location = urljoin(self.url, answer.headers["Location"])
        digest = f"sha256:{hasher.hexdigest()}"
        joined = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        send("PUT", joined, b"", {}).close()
        return digest
