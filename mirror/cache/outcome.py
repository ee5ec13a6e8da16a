"""How an answer was made; what `Cache-Status` (RFC 9211) and the metrics tell of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """`forward` is why upstream was needed (RFC 9211, section 2.2: "miss", "stale"); None for a hit."""

    forward: str | None = None
    collapsed: bool = False
    """Shared a request to upstream that was under way already."""
    stored: bool = False
    detail: str | None = None

    @property
    def hit(self) -> bool:
        """True where the content came from the cache, be it stale."""
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
