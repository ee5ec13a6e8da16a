"""Where a flight sets out from: what it needs to know of the world, so that flights and upstreams never meet."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.downloads.download import Source
from mirror.names import Repository


@dataclass(frozen=True, slots=True)
class DownloadContext:
    """For whom to fetch, and from where."""

    repository: Repository
    """Whose blob it is, as the client that began it said."""
    source: Source
    learned_connections: dict[str, int]
    """By registry, how many connections an earlier blob was worth."""

    @property
    def origin(self) -> str:
        """The registry's name, for metrics."""
        return self.repository.registry
