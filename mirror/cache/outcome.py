"""Where a response came from, for the `Cache-Status` header (RFC 9211) and the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """`forward` is why upstream was needed (RFC 9211, section 2.2: "miss", "stale"); None for a hit."""

    forward: str | None = None
    collapsed: bool = False
    """True if the request to upstream was shared with other clients."""
    stored: bool = False
    detail: str | None = None

    @property
    def hit(self) -> bool:
        """True if the content came from the cache, fresh or stale."""
        return self.forward != "miss"


HIT = Outcome()
VALIDATED = Outcome("stale", detail="validated")
STALE = Outcome("stale", detail="upstream-unavailable")
PARTIAL = Outcome("stale", detail="partial")
"""A list without all of its entries."""
PASSED = Outcome("miss", detail="not-stored")


def miss(collapsed: bool = False) -> Outcome:
    """Fetched from upstream, and kept."""
    return Outcome("miss", collapsed=collapsed, stored=True)
