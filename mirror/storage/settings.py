"""The limits that a store keeps to, as values. mirror/config describes the settings that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Expire:
    """A rule for expiry: images of repositories that match a shell pattern are removed after `after` seconds without use."""

    repositories: str
    after: float

    def covers(self, registry: str, path: str) -> bool:
        """True if the pattern matches the repository, with or without its registry."""
        return fnmatchcase(path, self.repositories) or fnmatchcase(f"{registry}/{path}", self.repositories)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Sizes in bytes, times in seconds."""

    max_size: int
    """The most that finished content and downloads in progress may take together."""
    high_watermark: float = 0.95
    low_watermark: float = 0.9
    """Shares of `max_size`: eviction begins above the high watermark and stops at the low one."""
    expire: tuple[Expire, ...] = ()
    scrub_rate: int = 0
    """Bytes per second that the scrub reads; 0 turns it off."""
    scrub_interval: float = 30 * 86400.0
    min_free: float = 0.0
    """Share of the file system that stays free."""
