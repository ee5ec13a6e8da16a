"""How a store keeps itself in order, as values; mirror/config says what each means to a person."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Expire:
    """Images of the repositories that fit a shell pattern go after `after` seconds without use."""

    repositories: str
    after: float

    def covers(self, registry: str, path: str) -> bool:
        """True for a repository that the pattern fits, with or without its registry."""
        return fnmatchcase(path, self.repositories) or fnmatchcase(f"{registry}/{path}", self.repositories)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Sizes in bytes, times in seconds."""

    max_size: int
    """What finished content and downloads in progress may take together."""
    high_watermark: float = 0.95
    low_watermark: float = 0.9
    """Shares of the limit: above the one, eviction goes down to the other."""
    expire: tuple[Expire, ...] = ()
    scrub_rate: int = 0
    """Bytes a second; 0 for never."""
    scrub_interval: float = 30 * 86400.0
    min_free: float = 0.0
    """Share of the file system that the cache leaves free."""
