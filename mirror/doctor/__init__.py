"""What is wrong on this machine, and what to do about it: settings, disk, clock, upstreams, the mirror itself, and the clients beside it.

Everything is asked at once, and each question has its time: an examination ends within some twelve seconds, with no network at all as well.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from mirror.clients import Address
from mirror.config import Settings
from mirror.doctor import disk, local, upstreams
from mirror.doctor.findings import Finding, Level, advice, ok, problem

__all__ = ["Finding", "Level", "advice", "examine", "ok", "problem"]


async def examine(settings: Settings, address: Address, root: Path = Path("/")) -> list[Finding]:
    """All findings, in the order in which they are best read. Never raises but CancelledError.

    `address` is where the mirror should be; the clients' files are looked for under `root`.
    """
    parts = await asyncio.gather(
        disk.examine(settings),
        upstreams.examine(settings),
        local.examine_mirror(settings, address),
        local.examine_clients(settings, address, root),
    )
    return [finding for part in parts for finding in part]
