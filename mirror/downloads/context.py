"""What a download needs to know of the repository that it fetches from. It reaches upstream only through `Source`."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.downloads.download import Source
from mirror.names import Repository


@dataclass(frozen=True, slots=True)
class DownloadContext:
    """One repository that is asked for a blob."""

    repository: Repository
    source: Source
    learned_connections: dict[str, int]
    """By registry, the number of connections at which an earlier blob came fastest. Shared by all downloads, which update it."""
    asks_mirror: bool = False
    """True if another mirror may be asked in the registry's place: it has what it has for other repositories too."""
    for_peer: bool = False
    """True if another mirror of the fleet asks: it must not wait for what is asked of such a mirror."""
