"""What a pushed manifest says, and what its repository must have (distribution-spec 1.1, "Pushing Manifests"; image-spec 1.1, "manifest.md").

A manifest is refused if its repository lacks a blob or manifest that it names: nobody could pull it whole. Not needed are the subject, which may be pushed
later, and layers that registries do not have ("layer.md", "Non-Distributable Layers").
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from mirror.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge, UpstreamInvalid
from mirror.manifests import (
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    INDEXES,
    MAX_SIZE,
    Manifest,
    children_of,
    is_elsewhere,
    media_type_of,
)
from mirror.names import Digest, Reference
from mirror.storage.hosted import PushedManifest

_MOST_ANNOTATIONS = 64 * 1024
"""Bytes of JSON, of one manifest."""
_LARGEST_SIZE = 2**63 - 1
"""Bytes: a descriptor's size is an int64 (image-spec 1.1, "descriptor.md")."""
_LONGEST_TYPE = 255
"""Characters of a media type (RFC 6838, section 4.2)."""


def pushed_manifest(body: bytes, content_type: str | None, reference: Reference) -> PushedManifest:
    """Reads a manifest that is pushed by `reference`. Raises ManifestInvalid, ManifestTooLarge, DigestInvalid."""
    if len(body) > MAX_SIZE:
        raise ManifestTooLarge(f"a manifest may have {MAX_SIZE} bytes")
    try:
        media_type = media_type_of(body, content_type)
    except UpstreamInvalid as error:
        raise ManifestInvalid(error.message) from None
    if media_type in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED):
        raise ManifestInvalid("manifests of schema 1 are not taken: push it with a client of the last years")
    digest = Digest.of(body, reference.algorithm if isinstance(reference, Digest) else "sha256")
    if isinstance(reference, Digest) and digest != reference:
        raise DigestInvalid(f"the manifest that was sent has the digest {digest}, not {reference}")
    document = json.loads(body)
    if document.get("schemaVersion") != 2:
        raise ManifestInvalid("a manifest has schemaVersion 2")
    _check_digests(document)
    manifests, blobs = children_of(body)
    elsewhere = (layer for layer in _list(document, "layers") if is_elsewhere(str(layer.get("mediaType"))))
    # What is also named otherwise is needed.
    needed = Counter((*manifests, *blobs)) - Counter(Digest.parse(layer["digest"]) for layer in elsewhere)
    subject = document.get("subject")
    return PushedManifest(
        Manifest(media_type, digest, body),
        frozenset((*manifests, *blobs)),
        frozenset(needed),
        Digest.parse(subject["digest"]) if isinstance(subject, dict) else None,
        _described(document, media_type, digest, len(body)),
    )


def manifest_of_client(body: bytes, content_type: str | None, reference: Reference) -> PushedManifest:
    """The same of one that a client sends now. Refuses also what Python reads and clients do not, since nobody could pull it: JSON is UTF-8 without a byte order
    mark, and has no NaN (RFC 8259, sections 6 and 8.1). What an archive or a bucket has is
    kept as it is. Raises as `pushed_manifest` does."""
    pushed = pushed_manifest(body, content_type, reference)
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant)
    except ValueError as error:
        raise ManifestInvalid(f"the manifest is not JSON as clients read it: {error}") from None
    listed = [entry for name in ("layers", "manifests", "blobs") for entry in _list(document, name)]
    sizes: dict[Digest, int] = {}
    for entry in (*listed, document.get("config"), document.get("subject")):
        if entry is None or "size" not in entry:
            continue
        size, digest = entry["size"], Digest.parse(entry["digest"])
        if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
            raise ManifestInvalid(f"in the manifest, the size of {digest} is not a number of bytes")
        if digest in pushed.needed and sizes.setdefault(digest, size) != size:
            raise ManifestInvalid(f"in the manifest, {digest} has two sizes")
    return replace(pushed, sizes=sizes)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_digests(document: dict[str, Any]) -> None:
    """Raises ManifestInvalid where a descriptor is none: what could not be read would not be kept."""
    listed = [entry for name in ("layers", "manifests", "blobs") for entry in _list(document, name)]
    single = [document[name] for name in ("config", "subject") if document.get(name) is not None]
    for entry in (*single, *listed):
        if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
            raise ManifestInvalid("a descriptor in the manifest has no digest")
        try:
            Digest.parse(entry["digest"])
        except DigestInvalid as error:
            raise ManifestInvalid(f"in the manifest, {error.message}") from None


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if value is not None and not isinstance(value, list):
        raise ManifestInvalid(f"{name!r} of the manifest is no list")
    return value or []


def _described(document: dict[str, Any], media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    """The descriptor of a manifest for the list of its subject's referrers (distribution-spec 1.1, "Listing Referrers")."""
    found: dict[str, Any] = {"mediaType": media_type, "digest": str(digest), "size": size}
    artifact_type, config = document.get("artifactType"), document.get("config")
    if not artifact_type and media_type not in INDEXES and isinstance(config, dict):
        artifact_type = config.get("mediaType")
    if isinstance(artifact_type, str) and 0 < len(artifact_type) <= _LONGEST_TYPE:
        found["artifactType"] = artifact_type
    if isinstance(annotations := document.get("annotations"), dict):
        found["annotations"] = _bounded({name: value for name, value in annotations.items() if isinstance(value, str)})
    return found


def _bounded(annotations: dict[str, str]) -> dict[str, str]:
    """As many as may be in the list, the short ones first: a manifest of 4 MiB may consist of them, and the list has those of all referrers."""
    size, kept = 0, set()
    for name in sorted(annotations, key=lambda name: len(name) + len(annotations[name])):
        size += len(json.dumps([name, annotations[name]]))
        if size > _MOST_ANNOTATIONS:
            break
        kept.add(name)
    return {name: value for name, value in annotations.items() if name in kept}
