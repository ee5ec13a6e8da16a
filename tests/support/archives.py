"""Archives of images, as other programs write them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping

from tests.support.images import Image, digest_of


def layout_of(images: Mapping[str, Image], bare_tag: str | None = None) -> dict[str, bytes]:
    """The files of an OCI layout with images by their full names; "" is none."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b""}
    entries = []
    for name, image in images.items():
        media_type, body = image.manifests[-1]
        annotations = {"org.opencontainers.image.ref.name": name or bare_tag} if name or bare_tag else {}
        entries.append({"mediaType": media_type, "digest": image.digest, "size": len(body), "annotations": annotations})
        for digest, blob in image.blobs.items():
            files[f"blobs/{digest.replace(':', '/')}"] = blob
        for _, manifest in image.manifests:
            files[f"blobs/{digest_of(manifest).replace(':', '/')}"] = manifest
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return files


def docker_save(name: str, image: Image, links: bool = False) -> tuple[dict[str, bytes], dict[str, str]]:
    """What `docker save` wrote before Docker 25: files, and links by name. With `links`, the first layer is a link to a folder without an image."""
    manifest = json.loads(image.manifests[-1][1])
    config = manifest["config"]["digest"].removeprefix("sha256:")
    files: dict[str, bytes] = {}
    linked: dict[str, str] = {}
    layers = []
    for number, layer in enumerate(manifest["layers"]):
        folder = f"{number:064x}"
        path = f"{folder}/layer.tar"
        layers.append(path)
        content = gzip.decompress(image.blobs[layer["digest"]])
        if links and number == 0:
            files[f"{'f' * 64}/layer.tar"] = content
            linked[path] = f"../{'f' * 64}/layer.tar"
        else:
            files[path] = content
        files[f"{folder}/VERSION"], files[f"{folder}/json"] = b"1.0", b'{"id": "x"}'
    files[f"{config}.json"] = image.blobs[f"sha256:{config}"]
    files["manifest.json"] = json.dumps([{"Config": f"{config}.json", "RepoTags": [name], "Layers": layers}]).encode()
    files["repositories"] = b"{}"
    return files, linked


def pack(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar of files, then of symbolic links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return made.getvalue()
