"""How the cache is kept in order, as values; what each means to a person is said in mirror/config."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Expire:
    """What repositories' images go after how many seconds without use."""

    repositories: str
    after: float

    def covers(self, registry: str, path: str) -> bool:
        """True for a repository that the pattern fits, with or without its registry."""
        return fnmatchcase(path, self.repositories) or fnmatchcase(f"{registry}/{path}", self.repositories)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Sizes in bytes, times in seconds."""

    max_size: int
    """What content and spool together may take."""
    high_watermark: float = 0.95
    low_watermark: float = 0.9
    """Shares of `max_size`: above the one, eviction goes down to the other."""
    expire: tuple[Expire, ...] = ()
    scrub_rate: int = 0
    """Bytes a second; 0 for never."""
    scrub_interval: float = 30 * 86400.0
