"""Changes from the dashboard at all mirrors of a fleet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from mirror.fleet_documents import END_SESSION, Change, FleetIncomplete, Member, Told

log = logging.getLogger(__name__)

_LOG_OUT = 5.0
"""Seconds in which the others are told of a log-out."""


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


async def tell_ended(fleet: FleetMembers | None, sessions: Sequence[str]) -> None:
    """Tells the others of sessions that were logged out, for which nobody waits long."""
    if not sessions:
        return
    try:
        async with asyncio.timeout(_LOG_OUT):
            told = await tell(fleet, Change(END_SESSION, tuple(sessions)))
    except TimeoutError:
        log.warning("a log-out is not known at all mirrors of the fleet: one does not answer in time")
        return
    if told.faults:
        log.warning("a log-out is not known %s", told.sentence("log in and out"))


def check(told: Told) -> None:
    """Returns if all of them have taken it. Raises FleetIncomplete."""
    if told.faults:
        raise FleetIncomplete(f"it is done here, but {told.sentence()}")
