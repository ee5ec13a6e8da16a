"""The limits that a store keeps to, as values. mirror/config describes the settings that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from mirror.names import Repository
from mirror.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Expire:
    """A rule for expiry: images of repositories that match a shell pattern are removed after `after` seconds without use."""

    repositories: str
    after: float

    def covers(self, registry: str, path: str) -> bool:
        """True if the pattern matches the repository, with or without its registry."""
        return fnmatchcase(path, self.repositories) or fnmatchcase(f"{registry}/{path}", self.repositories)


@dataclass(frozen=True, slots=True)
class Keep:
    """A rule of retention for hosted tags that both patterns fit: kept are the `last` ones, and those pushed within `age` seconds. None: that keeps nothing."""

    repositories: Pattern
    tags: Pattern
    last: int | None
    age: float | None


@dataclass(frozen=True, slots=True)
class HostedRules:
    """Which repositories live in the store, and what is kept of them. Without patterns, none does."""

    registry: str = ""
    """The registry of names that clients write without one."""
    repositories: tuple[Pattern, ...] = ()
    max_size: int | None = None
    """The most that their content and uploads may take, in bytes; None for as much as the disk gives."""
    immutable: tuple[tuple[Pattern, Pattern], ...] = ()
    """Patterns of repositories and tags: what such a tag means never changes."""
    untagged: float = 30 * 86400.0
    """Seconds for which a manifest is kept that nothing names."""
    grace: float = 86400.0
    """Seconds for which a blob is kept that no manifest names, and an upload that nobody continues."""
    keep: tuple[Keep, ...] = ()

    def covers(self, repository: Repository) -> bool:
        """Returns whether a repository lives in the store."""
        return repository.registry == self.registry and any(fits(pattern, repository) for pattern in self.repositories)

    def is_immutable(self, repository: Repository, tag: str) -> bool:
        """Returns whether what a tag means must not change."""
        return any(fits(where, repository) and tags.fits(tag) for where, tags in self.immutable)

    def keeping(self, repository: Repository, tag: str) -> Keep | None:
        """Returns the rule of retention for a tag; None if it is always kept."""
        return next((rule for rule in self.keep if fits(rule.repositories, repository) and rule.tags.fits(tag)), None)


def fits(pattern: Pattern, repository: Repository) -> bool:
    """Returns whether a pattern fits the name of a repository, which is also written without ``library/``."""
    short = repository.path.removeprefix("library/")
    return pattern.fits(repository.path) or ("/" not in short and pattern.fits(short))


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
    hosted: HostedRules = HostedRules()
