"""How much room the file system of a folder has, and how much of it the cache leaves to others."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from mirror.units import format_size

_LEAST_RESERVE = 64 * 1024 * 1024
"""Bytes that stay free whatever `cache.min_free` says; 1 % of a small file system."""
_TOLERANCE = 0.9
"""Others write too, and the cache makes room only when it needs some: the reserve counts as used from a tenth on."""

_UNKNOWN_DISK = 50 * 1024**3


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """Sizes in bytes."""

    total: int
    free: int
    """What this user may take."""
    reserve: int
    """What the cache leaves free."""
    inodes: int | None
    """Files that can be made; None where the file system has no such limit."""

    @property
    def is_low(self) -> bool:
        """True where less is free than the cache leaves, so that it cannot be what takes it."""
        return self.free < self.reserve * _TOLERANCE

    def shortage(self, folder: Path) -> str:
        """A sentence for people; empty where there is none."""
        if not self.is_low:
            return ""
        return (
            f"the disk of {folder} has {format_size(self.free)} free of {format_size(self.total)}, less than the {format_size(self.reserve)}"
            " that cache.min_free leaves to others: what does not fit after eviction is served, and not kept"
        )


def measure(folder: Path, min_free: float) -> DiskRoom:
    """The room for a folder, which need not exist yet; `min_free` is a share of the file system. Raises OSError. Blocks."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    state = os.statvfs(folder)
    total = state.f_blocks * state.f_frsize
    reserve = int(max(min(_LEAST_RESERVE, total // 100), min_free * total))
    return DiskRoom(total, state.f_bavail * state.f_frsize, reserve, state.f_favail if state.f_files else None)


def default_limit(folder: Path | None) -> int:
    """The default limit of a cache in bytes: a quarter of the disk that `folder` is on; 50 GiB if the size of the disk is unknown."""
    if folder is not None:
        with contextlib.suppress(OSError):
            return measure(folder, 0).total // 4 or _UNKNOWN_DISK
    return _UNKNOWN_DISK
