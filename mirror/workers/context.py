"""A worker's place among the others."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker is given by the parent."""

    number: int
    """From 0; a worker that takes a dead one's place takes its number."""
    folder: Path
    """Of files that all workers read."""
    listeners: tuple[socket.socket, ...]
    counts: memoryview[int]
    """How many connections each worker has, in memory that they share."""
    orphaned: int
    """A descriptor that becomes readable when the parent is gone."""
    ready: Callable[[], None]
    """To be called once requests are taken."""
    alive: Callable[[], None]
    """To be called every few seconds from then on."""
