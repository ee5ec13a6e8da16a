"""Who is told of what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mirror.events import Action, Event
from mirror.patterns import RepositoryPattern


@dataclass(frozen=True, slots=True)
class Receiver:
    """One ``[[webhook]]`` table."""

    name: str
    url: str = field(repr=False)
    """It may have a secret in its path: only its host is shown."""
    actions: frozenset[Action]
    repositories: tuple[RepositoryPattern, ...]
    timeout: float
    """Seconds for one try."""
    secret_file: Path | None = None
    """What bodies are signed with."""
    authorization_file: Path | None = None
    """The value of the header Authorization."""
    ca_file: Path | None = None
    """PEM of the authorities that the receiver's certificate may come from; None for the system's."""

    def wants(self, event: Event) -> bool:
        """Returns whether it is told of an event. One of no repository is told to those that are for all."""
        if event.action not in self.actions:
            return False
        if event.repository is None:
            return any(pattern.is_everything for pattern in self.repositories)
        return any(pattern.matches(event.repository) for pattern in self.repositories)
