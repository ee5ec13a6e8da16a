"""Checks the cache's disk: whether it can be written and has room for the size limit, and whether files with secrets are private."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mirror.config import Settings
from mirror.disk_room import measure
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.doctor.waiting import within
from mirror.file_systems import kind_of, refusal
from mirror.locks import try_exclusive
from mirror.units import format_size

_CHECK = "disk"


_PATIENCE = 10.0


async def examine(settings: Settings) -> list[Finding]:
    """Returns findings about the disk; writes and removes a small file. Raises only CancelledError."""
    try:
        return await within(_PATIENCE, _examine, settings)
    except TimeoutError:
        message = f"the disk of {settings.cache.dir} did not write a small file and list the cache within {_PATIENCE:g} s"
        return [problem(_CHECK, message, "check the kernel's log (dmesg), and the file server if there is one")]


def _examine(settings: Settings) -> list[Finding]:
    folder = settings.cache.dir
    try:
        found = list(_write(folder))
        if not found:
            found = [*_file_system(folder), *_room(folder, settings.cache.max_size, settings.cache.min_free)]
    except OSError as error:
        cure = f"create {folder} and make it writable for the user that runs the mirror, or set cache.dir (--cache-dir) to another folder"
        found = [problem(_CHECK, f"the cache directory {folder} cannot be used: {error.strerror or error}", cure)]
    return [*found, *_secrets(settings)]


def _write(folder: Path) -> Iterator[Finding]:
    """Yields a finding for what a file in the folder cannot do: be locked, written, synced, renamed. Raises OSError."""
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not os.access(above, os.W_OK):
            raise PermissionError(13, f"it does not exist, and this user cannot create it in {above}")
        folder = above
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
        first, second = Path(name) / "1", Path(name) / "2"
        with open(first, "wb") as file:
            try:
                try_exclusive(file.fileno())
            except OSError as error:
                yield problem(
                    _CHECK,
                    f"files in {folder} cannot be locked: {error.strerror}",
                    "set cache.dir to a local disk: locks coordinate downloads",
                )
            file.write(b"x" * 65536)
            file.flush()
            os.fsync(file.fileno())
        first.rename(second)
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if second.stat().st_size != 65536:
            yield problem(_CHECK, f"what is written to {folder} is lost", "check the kernel's log (dmesg) for disk errors")


def _file_system(folder: Path) -> Iterator[Finding]:
    kind = kind_of(folder)
    if message := refusal(folder):
        yield problem(_CHECK, message, "set cache.dir (--cache-dir) to a local disk; the mirror does not start on this one")
    elif kind in ("9p", "virtiofs"):
        yield advice(
            _CHECK,
            f"{folder} is shared with this machine's host ({kind})",
            "set cache.dir to a local disk: hits are as fast as the disk",
        )
    elif kind in ("tmpfs", "ramfs"):
        yield advice(
            _CHECK, f"{folder} is in memory ({kind})", "set cache.dir to a disk, or everything is downloaded again after a reboot"
        )
    elif kind == "overlay":
        yield advice(
            _CHECK, f"{folder} is in a container's own layer", "mount a volume there, or the cache is lost with the container"
        )


def _room(folder: Path, max_size: int, min_free: float) -> Iterator[Finding]:
    room = measure(folder, min_free)
    kept = sum(_sizes(folder / "blobs")) + sum(_sizes(folder / "spool"))
    usage = f"{format_size(kept)} cached of {format_size(max_size)} at most, {format_size(room.free)} of {format_size(room.total)} free ({kind_of(folder) or 'unknown file system'})"
    usable = kept + room.free - room.reserve
    if room.free < min(room.total // 100, 64 * 1024 * 1024):
        yield problem(
            _CHECK,
            f"the disk of {folder} is full: {usage}",
            "reduce cache.max_size or enlarge the disk; until then blobs are passed through and not kept",
        )
    elif room.is_low:
        yield problem(
            _CHECK,
            room.shortage(folder),
            f"delete other files on that disk, or set cache.dir to another one; now it holds {usage}",
        )
    elif usable < max_size:
        yield advice(
            _CHECK,
            f"{folder} has no room for cache.max_size: {usage}",
            f"set cache.max_size to {format_size(usable * 0.95).replace(' ', '')} or less, or enlarge the disk",
        )
    elif room.inodes is not None and room.inodes < 10_000:
        yield problem(
            _CHECK,
            f"the file system of {folder} has {room.inodes} inodes left",
            "set cache.dir to another file system, or delete small files",
        )
    else:
        yield ok(_CHECK, f"{folder}: {usage}")


def _sizes(folder: Path) -> Iterator[int]:
    """Yields the allocated size of each file: those of downloads in progress are sparse."""
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(above, name)).st_blocks * 512


def _secrets(settings: Settings) -> Iterator[Finding]:
    for name, registry in settings.registries.items():
        if registry.password_file is not None:
            with contextlib.suppress(OSError):
                if registry.password_file.stat().st_mode & 0o004:
                    yield advice(
                        "settings",
                        f"every user of this machine can read {name}'s password in {registry.password_file}",
                        f"chmod o-r {registry.password_file}; its group should be that of the mirror's user",
                    )
