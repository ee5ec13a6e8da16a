"""What tags have meant: values that a store returns of its history, and of what was decided by hand. Times are in seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository, Tag

PUSHED_BY = "push by "
"""How the endpoint of a sighting begins that is a push to a hosted repository; who pushed follows."""

MOST_RULINGS = 10_000
"""Lines that are kept of what guards have done."""


@dataclass(frozen=True, slots=True)
class Released:
    """That a moved tag was released by hand, before its time."""

    when: float
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """That a tag meant `descriptor` from `first` to `last`, each time that the registry was asked. The descriptor names the endpoint that said so first; none if
    it came from an archive, or was known before there was a history."""

    descriptor: Descriptor
    first: float
    last: float
    served: float | None = None
    """Since when clients get it by this tag; None if they never did."""
    gone: float | None = None
    """When the registry said, after this, that there is no such tag."""
    released: Released | None = None

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


@dataclass(frozen=True, slots=True)
class Move:
    """That a tag moved from one digest to another one. `went_back` is True if it had meant `after` before."""

    repository: Repository
    tag: Tag
    before: Digest
    after: Digest
    when: float
    went_back: bool


@dataclass(frozen=True, slots=True)
class HeldTag:
    """A tag that means something else at its registry than here. `until` is infinite if no time ends it."""

    repository: Repository
    tag: Tag
    served: Digest | None
    """None if clients get nothing by it."""
    new: Digest
    since: float
    until: float
    released: bool = False
    """True if `new` was released by hand: no cooldown holds it back any more, and the next request for the tag gets it if nothing else is against it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A digest that was blocked by hand."""

    digest: Digest
    reason: str
    who: str
    when: float


@dataclass(frozen=True, slots=True)
class Ruled:
    """How often a guard's rule has changed, or would have changed, what clients get by a reference. `verdict` is as in the metrics."""

    rule: str
    verdict: str
    repository: Repository
    reference: Reference
    count: int
    last: float
    reason: str
    """Of the last time."""
