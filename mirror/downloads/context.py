"""Where a flight sets out from: what it needs to know of the world, so that flights and upstreams never meet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mirror.downloads.download import Source
from mirror.names import Digest, Repository


@dataclass(frozen=True, slots=True)
class DownloadContext:
    """How to fetch, how to make room, whom to tell."""

    repository: Repository
    """Whose blob it is, as the client that began it said."""
    source: Source
    make_room: Callable[[int], Awaitable[None]]
    """Makes room for so many bytes. Raises StorageFull."""
    completed: Callable[[Digest, int], Awaitable[None]]
    """Told of a finished blob and its size."""
    learned_connections: dict[str, int]
    """By registry, how many connections an earlier blob was worth."""

    @property
    def origin(self) -> str:
        """The registry's name, for metrics."""
        return self.repository.registry
