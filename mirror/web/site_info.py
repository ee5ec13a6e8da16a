"""What the pages say about the mirror itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.access.audit import RefusedClient
from mirror.access.month_file import Used
from mirror.web.fleet import FleetMembers


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """The mirror that the pages are about. Sizes in bytes, times in seconds."""

    version: str
    registries: Callable[[], tuple[str, ...]]
    max_size: int
    tag_ttl: float
    report: Callable[[], dict[str, Any]]
    """As /readyz has it."""
    settings: Callable[[], Mapping[str, str]] = dict
    """The settings in force, without secrets."""
    shadowing: Callable[[], tuple[str, ...]] = tuple
    """Patterns of hosted repositories that cover names which others pull from Docker Hub."""
    certificate_ends: Callable[[], float | None] = lambda: None
    """When the mirror's own certificate expires, in seconds since the epoch; None if it has none."""
    month: Callable[[], list[Used]] = list
    """What users and addresses were sent this month, where that is limited. Blocks. Raises OSError."""
    refused: Callable[[], Mapping[tuple[str, str, str], Sequence[RefusedClient]] | None] = lambda: None
    """To whom guards have refused something, by rule, repository and reference; None if there is no audit log. Blocks. Raises OSError."""
    fleet: FleetMembers | None = None
    """The mirrors of the fleet, if this one belongs to any."""
