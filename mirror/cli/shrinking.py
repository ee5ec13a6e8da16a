"""Asks for confirmation before a start whose size limit would remove most of the cache, so that a mistyped size costs nothing."""

from __future__ import annotations

from mirror.config import Settings
from mirror.errors import CatalogFailed
from mirror.storage.cache_directory import holds_cache, noted_limit, read_inventory
from mirror.units import format_size

_MUCH = 0.5
"""The share of cached content that a start removes without confirmation."""


def keep_from_emptying(settings: Settings) -> tuple[Settings, str]:
    """Returns the settings to serve with, and a message if their limit is not the one that was set.

    If `cache.max_size` would remove more than half of the cache, the previous limit stays in force: a service that restarts unattended keeps running and
    loses nothing.
    """
    folder, limit = settings.cache.dir, settings.cache.max_size
    try:
        if not holds_cache(folder):
            return settings, ""
        with read_inventory(folder) as inventory:
            cached = inventory.totals().size
    except (OSError, CatalogFailed):
        # The start itself reports this.
        return settings, ""
    excess = cached - limit
    if excess <= _MUCH * cached:
        return settings, ""
    kept = max(noted_limit(folder) or 0, int(cached / settings.cache.high_watermark) + 1)
    message = (
        f"cache.max_size is {format_size(limit)}, for which {format_size(excess)} of {format_size(cached)} cached would be removed: "
        f"nothing was removed, and the limit stays {format_size(kept)}. To confirm, run mirror serve with --yes, or mirror gc with these settings before the next start"
    )
    return settings.model_copy(update={"cache": settings.cache.model_copy(update={"max_size": kept})}), message
