"""Images made on the spot: real layers that unpack, pushed over HTTP so that every byte is known."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urljoin
from urllib.response import addinfourl

from mirror.manifests import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.support.patience import PATIENCE

_TYPES = {
    "oci": (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip", OCI_INDEX),
    "docker": (
        DOCKER_MANIFEST,
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        DOCKER_LIST,
    ),
}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Image:
    """Everything that a registry must hold: `blobs` by digest, `manifests` as (media type, body), the last of which the tag names."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return digest_of(self.manifests[-1][1])


def make_image(seed: int, form: str = "oci", architecture: str = "amd64", layers: int = 3, size: int = 300_000) -> Image:
    """An image of some layers, the last of `size` random bytes; the same seed gives the same bytes."""
    manifest_type, config_type, layer_type, _ = _TYPES[form]
    chance = random.Random(f"{seed} {architecture}")
    image = Image()
    described, diff_ids = [], []
    for number in range(layers):
        content = chance.randbytes(size if number == layers - 1 else 2000)
        tar = _tar({f"etc/layer-{number}": f"{seed} {number}\n".encode(), f"data/{number}.bin": content})
        packed = gzip.compress(tar, 1, mtime=0)
        image.blobs[digest_of(packed)] = packed
        described.append({"mediaType": layer_type, "digest": digest_of(packed), "size": len(packed)})
        diff_ids.append(digest_of(tar))
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {number}"} for number in range(layers)],
        }
    ).encode()
    image.blobs[digest_of(config)] = config
    body = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": {"mediaType": config_type, "digest": digest_of(config), "size": len(config)},
        "layers": described,
    }
    image.manifests.append((manifest_type, json.dumps(body, indent=3).encode()))
    return image


def make_index(seed: int, form: str = "oci") -> Image:
    """An image for linux/amd64 and linux/arm64."""
    both = {architecture: make_image(seed, form, architecture) for architecture in ("amd64", "arm64")}
    whole = Image()
    entries = []
    for architecture, image in both.items():
        whole.blobs |= image.blobs
        whole.manifests += image.manifests
        media_type, body = image.manifests[-1]
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": media_type, "digest": digest_of(body), "size": len(body), "platform": platform})
    index_type = _TYPES[form][3]
    body = json.dumps({"schemaVersion": 2, "mediaType": index_type, "manifests": entries}, indent=3).encode()
    whole.manifests.append((index_type, body))
    return whole


def push(url: str, repository: str, tag: str, image: Image, authorization: str | None = None) -> None:
    """Puts an image into a registry, byte for byte."""
    headers = {"Authorization": authorization} if authorization else {}
    for digest, data in image.blobs.items():
        with send("POST", f"{url}/v2/{repository}/blobs/uploads/", b"", headers) as begun:
            location = urljoin(url, begun.headers["Location"])
        joined = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        send("PUT", joined, data, {**headers, "Content-Type": "application/octet-stream"}).close()
    for number, (media_type, body) in enumerate(image.manifests):
        reference = tag if number == len(image.manifests) - 1 else digest_of(body)
        send("PUT", f"{url}/v2/{repository}/manifests/{reference}", body, {**headers, "Content-Type": media_type}).close()


def send(method: str, url: str, data: bytes, headers: dict[str, str]) -> addinfourl:
    """One request to a registry. Raises HTTPError for an answer that is no success."""
    answer: addinfourl = urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=PATIENCE)
    return answer


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for folder in sorted({name.split("/")[0] for name in files}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()
