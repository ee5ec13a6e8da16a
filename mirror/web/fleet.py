"""Changes from the dashboard at all mirrors of a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mirror.fleet_documents import Change, FleetIncomplete, Member, Told


class FleetMembers(Protocol):
    """The mirrors of the fleet, as the dashboard asks and tells them; see `mirror.upstream.members.Members`."""

    @property
    def mirrors(self) -> Sequence[str]: ...
    @property
    def others(self) -> Sequence[str]: ...
    @property
    def can_tell(self) -> bool: ...
    async def tell(self, change: Change) -> Told: ...
    async def states(self) -> list[Member]: ...


async def tell(fleet: FleetMembers | None, change: Change) -> Told:
    """Tells the other mirrors, if there are any that would take it."""
    return Told() if fleet is None or not fleet.can_tell else await fleet.tell(change)


def check(told: Told) -> None:
    """Returns if all of them have taken it. Raises FleetIncomplete."""
    if told.faults:
        raise FleetIncomplete(f"it is done here, but {told.sentence()}")
