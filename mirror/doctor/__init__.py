"""Diagnoses this machine: settings, disk, clock, upstreams, the mirror itself, its fleet and bucket, lists of images, webhooks, and the clients beside it.

All checks run at once and have time limits: an examination takes about fifteen seconds at most, even without a network, and three more for each endpoint of a registry
that has several, since their throughput is measured one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from mirror.clients import Address
from mirror.config import Settings
from mirror.doctor import bucket, disk, fleet, local, upstreams, warm, webhooks
from mirror.doctor.findings import Finding, Level, advice, ok, problem

__all__ = ["Finding", "Level", "advice", "examine", "ok", "problem"]


async def examine(settings: Settings, addresses: Sequence[Address], root: Path = Path("/")) -> list[Finding]:
    """Returns all findings, in reading order. Raises only CancelledError.

    `addresses` are the mirror's, or those of several equal ones, in the order in which clients here ask them; the clients' files are read under `root`.
    """
    parts = await asyncio.gather(
        disk.examine(settings),
        upstreams.examine(settings),
        fleet.examine(settings),
        bucket.examine(settings),
        *(local.examine_mirror(settings, address) for address in addresses),
        warm.examine(settings, addresses[0]),
        webhooks.examine(settings),
        local.examine_clients(settings, addresses, root),
    )
    return [finding for part in parts for finding in part]
