"""What a worker needs to serve with others."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Made by the parent for each worker."""

    number: int
    """From 0; the replacement of a dead worker gets its number."""
    folder: Path
    """For files that all workers read."""
    listeners: tuple[socket.socket, ...]
    counts: memoryview[int]
    """How many connections each worker has, in shared memory."""
    rates: memoryview[float]
    """Floats in shared memory, with which workers share the caps on downloads."""
    capped: Sequence[str]
    """The registries that have floats among them."""
    orphaned: int
    """A descriptor that becomes readable when the parent ends."""
    alive: Callable[[], None]
    """To be called every few seconds from the moment that requests are served: the first call says so, the others that the worker does not hang."""
