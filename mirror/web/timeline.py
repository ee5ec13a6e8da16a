"""What changed from one image of a tag to the next, in words of the image's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror.cache.comparing import Change
from mirror.web import filters

MOST = 12
"""Sightings that are shown, the latest."""
_MOST_NAMES = 6


def shown(change: Change) -> tuple[str, Mapping[str, Any]]:
    """Returns what changed, and the values of its text. Sizes and times are formatted; times with as much as tells them apart."""
    key = change.what
    before, after = change.before, change.after
    match change.what:
        case "layers":
            return key, {"new": len(change.names), "n": after}
        case "environment" | "labels":
            more = ["…"] if len(change.names) > _MOST_NAMES else []
            return key, {"names": ", ".join([*change.names[:_MOST_NAMES], *more])}
        case "size":
            assert isinstance(before, int)
            assert isinstance(after, int)
            return key, {"before": filters.size(before), "after": filters.size(after)}
        case "created":
            assert isinstance(before, float)
            assert isinstance(after, float)
            forms = filters.date, filters.clock, filters.machine_time
            form = next((one for one in forms if one(before) != one(after)), forms[-1])
            return key, {"before": form(before), "after": form(after)}
    return key, {"before": before or "-", "after": after or "-"}
