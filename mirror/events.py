"""What happens that an operator may want to be told of. Whoever lets something happen sends it to `Events`; mirror/notifications tells the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mirror.manifests import Descriptor
from mirror.names import Digest, Repository


class Action(StrEnum):
    """What has happened. The first three are distribution's own ("Work with notifications"), the others it has none for."""

    PUSH = "push"
    PULL = "pull"
    """For the first time."""
    DELETE = "delete"
    TAG_MOVED = "tag_moved"
    GUARD = "guard"
    QUOTA = "quota"
    LOGIN_LOCKED = "login_locked"


@dataclass(frozen=True, slots=True)
class Request:
    """The request that something happened by."""

    address: str
    """The client's."""
    origin: str
    """Scheme and host, as the client named them."""
    method: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Event:
    """Fields that do not apply are empty."""

    action: Action
    repository: Repository | None = None
    tag: str = ""
    digest: Digest | None = None
    is_blob: bool = False
    """True if the digest is that of a blob."""
    media_type: str = ""
    size: int | None = None
    """Of the manifest, in bytes."""
    references: tuple[Descriptor, ...] = ()
    """What a manifest that was pushed names."""
    actor: str = ""
    """Who did it."""
    request: Request | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    """What distribution's form has no field for, as JSON has it. Never a secret."""
    once: str = ""
    """Of several events with the same text within an hour, one is told."""


class Events(Protocol):
    """Takes events."""

    def wants(self, action: Action) -> bool:
        """True if somebody is told of such events. Others need not be made."""
        ...

    def send(self, event: Event) -> None:
        """Takes an event, from any thread. Neither waits nor raises."""
        ...


class Nobody:
    """Implements `Events` where nobody is to be told."""

    def wants(self, action: Action) -> bool:
        return False

    def send(self, event: Event) -> None:
        pass


NOBODY = Nobody()
