"""What a manifest is, and what it names.

A *manifest* is a small JSON document that names the blobs of one image; an *index* (Docker: manifest list) names manifests, one per
platform. Both are content: they are kept byte for byte as upstream gave them, because their digest is their name.

Media types and fields: OCI image-spec 1.1, "manifest.md" and "image-index.md"; Docker's, distribution's "manifest v2 schema 2".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mirror.errors import DigestInvalid, UpstreamInvalid
from mirror.names import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"

MEDIA_TYPES = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_ARTIFACT,
    DOCKER_SCHEMA1_SIGNED,
    DOCKER_SCHEMA1,
)
"""All that are asked for upstream, so that what is cached does not depend on which client came first."""

ACCEPT = ", ".join(MEDIA_TYPES)

INDEXES = (OCI_INDEX, DOCKER_LIST)
"""Those of them that name manifests."""

MAX_SIZE = 4 * 1024 * 1024
"""Bytes. "A manifest … SHOULD be at most 4 megabytes" (distribution-spec 1.1, "Pushing Manifests")."""

_PLATFORM = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){1,2}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is known of content without having it. `size` is in bytes."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes exactly as upstream gave them, and their name."""

    media_type: str
    digest: Digest
    body: bytes

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.body))


def media_type_of(body: bytes, content_type: str | None) -> str:
    """The media type of a manifest, from what upstream said and what the document says of itself.

    Raises UpstreamInvalid where the two disagree, or where `body` is no manifest at all (HTML from a captive portal, say).
    Parameters of the Content-Type are dropped: "The registry SHOULD NOT include parameters on the Content-Type header."
    """
    document = _document(body)
    said = (content_type or "").partition(";")[0].strip().lower()
    own = document.get("mediaType")
    if own is not None and not isinstance(own, str):
        raise UpstreamInvalid("the manifest's mediaType is not a string")
    if said in MEDIA_TYPES:
        if own in MEDIA_TYPES and own != said:
            raise UpstreamInvalid(f"the manifest says it is {own}, its Content-Type says {said}")
        return said
    if own in MEDIA_TYPES:
        return str(own)
    # Plain file servers and some old registries say application/json or octet-stream: the fields decide.
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if isinstance(document.get("layers"), list) and isinstance(document.get("config"), dict):
        return OCI_MANIFEST
    raise UpstreamInvalid(f"not a manifest of a known kind (Content-Type {said or 'absent'!r})")


def children_of(body: bytes) -> tuple[list[Digest], list[Digest]]:
    """The digests that a manifest names: (manifests, blobs). Entries that make no sense are passed over.

    Foreign layers and embedded data are listed too: whether anybody asks for them is the client's affair.
    """
    try:
        document = _document(body)
    except UpstreamInvalid:
        return [], []
    manifests = _digests(document.get("manifests"))
    blobs = _digests([document.get("config")]) + _digests(document.get("layers")) + _digests(document.get("blobs"))
    for layer in document.get("fsLayers") or () if isinstance(document.get("fsLayers"), list) else ():
        if isinstance(layer, dict):
            blobs += _digests([{"digest": layer.get("blobSum")}])
    return manifests, blobs


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of an index: a manifest, and the platform that it is for, as ``os/architecture[/variant]``; None where it says none."""

    descriptor: Descriptor
    platform: str | None


def entries_of(body: bytes) -> list[Entry]:
    """What an index lists; nothing for what is no index."""
    return [
        Entry(descriptor, _platform(entry.get("platform"))) for entry, descriptor in _described(_readable(body).get("manifests"))
    ]


def blobs_of(body: bytes) -> tuple[Descriptor | None, list[Descriptor]]:
    """The configuration of a single manifest, where it has one, and its layers in order, each once for every time that it is listed.

    The size in bytes is what the manifest says; 0 where it says nothing (schema 1).
    """
    document = _readable(body)
    configs = [descriptor for _, descriptor in _described([document.get("config")])]
    layers = [
        descriptor
        for name in ("layers", "blobs", "fsLayers")
        for _, descriptor in _described(document.get(name), "blobSum" if name == "fsLayers" else "digest")
    ]
    return (configs[0] if configs else None), layers


def platform_of(config: bytes) -> str | None:
    """The platform that an image's configuration names; None where it is no image's (image-spec 1.1, "config.md")."""
    return _platform(_readable(config))


def _platform(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("os", "architecture")):
        return None
    parts = [value["os"], value["architecture"], value.get("variant")]
    platform = "/".join(part for part in parts if isinstance(part, str) and part)
    return platform if _PLATFORM.fullmatch(platform) else None


def _described(entries: Any, key: str = "digest") -> list[tuple[dict[str, Any], Descriptor]]:
    found = []
    for entry in entries if isinstance(entries, list) else ():
        for digest in _digests([{"digest": entry.get(key)}] if isinstance(entry, dict) else ()):
            media_type, size = entry.get("mediaType"), entry.get("size")
            found.append(
                (
                    entry,
                    Descriptor(
                        media_type if isinstance(media_type, str) else "",
                        digest,
                        size if isinstance(size, int) and size > 0 else 0,
                    ),
                )
            )
    return found


def _readable(body: bytes) -> dict[str, Any]:
    try:
        return _document(body)
    except UpstreamInvalid:
        return {}


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UpstreamInvalid("the manifest is not JSON") from None
    if not isinstance(document, dict):
        raise UpstreamInvalid("the manifest is not a JSON object")
    return document


def _digests(entries: Any) -> list[Digest]:
    found: list[Digest] = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        value = entry.get("digest") if isinstance(entry, dict) else None
        if isinstance(value, str):
            try:
                found.append(Digest.parse(value))
            except DigestInvalid:
                continue
    return found
