"""Which entries of an audit log are about an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any


def wanted_entries(entries: Iterable[dict[str, Any]], wanted: Mapping[str, Set[str]]) -> list[dict[str, Any]]:
    """Returns those that have, of each field in `wanted`, one of the values."""
    return [entry for entry in entries if all(_values(entry, key) & values for key, values in wanted.items())]


def _values(entry: dict[str, Any], key: str) -> set[Any]:
    """A pull by digest has the digest as its reference."""
    return {
        one
        for one in ({entry.get("digest"), entry.get("reference")} if key == "digest" else {entry.get(key)})
        if isinstance(one, str)
    }
