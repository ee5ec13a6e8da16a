"""A start with a limit that would empty the cache waits for a confirmation: a mistyped size costs nothing then."""

from __future__ import annotations

from mirror.config import Settings
from mirror.errors import CatalogFailed
from mirror.storage.offline import noted_limit, read_inventory
from mirror.units import format_size

_MUCH = 0.5
"""Share of what is cached that a start removes without asking."""


def keep_from_emptying(settings: Settings) -> tuple[Settings, str]:
    """Settings to serve with, and what to tell people where the limit is not the one that they set.

    Where `cache.max_size` would remove more than half of what is cached, the cache's earlier limit stays in force: a service that restarts unattended
    goes on, and loses nothing.
    """
    folder, limit = settings.cache.dir, settings.cache.max_size
    try:
        if not (folder / "catalog" / "content.sqlite").exists():
            return settings, ""
        with read_inventory(folder) as inventory:
            cached = inventory.totals().size
    except (OSError, CatalogFailed):
        # The start itself reports what is wrong there.
        return settings, ""
    excess = cached - limit
    if excess <= _MUCH * cached:
        return settings, ""
    kept = max(noted_limit(folder) or 0, int(cached / settings.cache.high_watermark) + 1)
    told = (
        f"cache.max_size is {format_size(limit)}, for which {format_size(excess)} of {format_size(cached)} cached would be removed: "
        f"nothing is, and the limit stays {format_size(kept)}. If that is meant, run mirror serve with --yes, or mirror gc with these settings before the next start"
    )
    return settings.model_copy(update={"cache": settings.cache.model_copy(update={"max_size": kept})}), told
