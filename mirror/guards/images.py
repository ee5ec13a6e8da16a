"""What an image's manifest and configuration say of it (image-spec 1.1, "manifest.md" and "config.md")."""

from __future__ import annotations

import json
from typing import Any

from mirror.guards.rules import Image
from mirror.manifests import Manifest, blobs_of, entries_of, platform_in
from mirror.storage.image_config import parse_moment


def describe(manifest: Manifest, configuration: bytes, platform: str | None = None) -> Image:
    """Returns what is said of an image, or of an index. `configuration` is empty if there is none; `platform` is what an index says that it is for."""
    entries = entries_of(manifest.body)
    platforms = {entry.platform for entry in entries if entry.platform is not None}
    document = _object(configuration)
    if (own := platform_in(document)) is not None:
        platforms.add(own)
    if platform is not None:
        platforms.add(platform)
    config, layers = blobs_of(manifest.body)
    size = sum(blob.size for blob in [*([config] if config else []), *layers]) if layers else None
    labels = _object_in(document, "config").get("Labels")
    created = parse_moment(document.get("created"))
    if created is None:
        created = parse_moment(_object_in(_object(manifest.body), "annotations").get("org.opencontainers.image.created"))
    texts = {str(name): value for name, value in labels.items() if isinstance(value, str)} if isinstance(labels, dict) else {}
    return Image(manifest.media_type, frozenset(platforms), size, created, texts)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _object_in(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}
