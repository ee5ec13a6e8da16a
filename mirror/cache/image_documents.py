"""A cached image as JSON: what ``mirror ls --json`` prints, and what the mirrors of a fleet tell each other."""

from __future__ import annotations

from typing import Any

from mirror.cache.freshness import is_fresh
from mirror.storage.inventory import Image
from mirror.units import moment


def describe(image: Image, ttl: float) -> dict[str, Any]:
    """Returns its values by the keys of docs/json.md. `ttl` in seconds."""
    return {
        "image": str(image),
        "registry": image.repository.registry,
        "repository": image.repository.path,
        "reference": str(image.reference),
        "digest": str(image.digest),
        "platforms": list(image.platforms),
        "size": image.size,
        "shared": image.shared,
        "missing": image.missing,
        "fetched": moment(image.fetched),
        "checked": moment(image.checked),
        "pulls": image.pulls,
        "pulled": moment(image.pulled),
        "fresh": image.pushed is not None or is_fresh(image.checked, ttl),
        "pinned": image.pinned,
        "listed": image.listed,
        "pushed": moment(image.pushed),
        "pushed_by": image.pushed_by or None,
    }
