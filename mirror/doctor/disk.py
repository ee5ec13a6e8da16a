"""The cache's disk: can it be written, lasts what is written, is there room for what the settings promise, and do files of secrets keep them?"""

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
from mirror.locks import try_exclusive
from mirror.units import format_size

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph", "virtiofs", "afs"}
_CHECK = "disk"


_PATIENCE = 10.0


async def examine(settings: Settings) -> list[Finding]:
    """Writes and removes a small file in the cache directory. Never raises but CancelledError."""
    try:
        return await within(_PATIENCE, _examine, settings)
    except TimeoutError:
        told = f"the disk of {settings.cache.dir} has not written a small file and counted the cache within {_PATIENCE:g} s"
        return [problem(_CHECK, told, "look at the kernel's log (dmesg), and at the server where it is a network's file system")]


def _examine(settings: Settings) -> list[Finding]:
    folder = settings.cache.dir
    try:
        found = list(_write(folder))
        if not found:
            found = [*_file_system(folder), *_room(folder, settings.cache.max_size, settings.cache.min_free)]
    except OSError as error:
        cure = f"make {folder} and give it to the user that runs the mirror, or set cache.dir (--cache-dir) to another folder"
        found = [problem(_CHECK, f"the cache directory {folder} cannot be used: {error.strerror or error}", cure)]
    return [*found, *_secrets(settings)]


def _write(folder: Path) -> Iterator[Finding]:
    """Nothing where a file can be locked, written, forced to the disk and renamed. Raises OSError."""
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not os.access(above, os.W_OK):
            raise PermissionError(13, f"it is not there, and this user cannot make it in {above}")
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
                    "set cache.dir to a local disk: downloads are shared by locks",
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
            yield problem(
                _CHECK, f"what is written to {folder} does not stay", "look at the kernel's log (dmesg) for faults of the disk"
            )


def _file_system(folder: Path) -> Iterator[Finding]:
    kind = _kind(folder)
    if kind in _NETWORK:
        yield advice(
            _CHECK,
            f"{folder} is on a network's file system ({kind})",
            "set cache.dir to a local disk: a hit is as fast as the disk, and locks hold there",
        )
    elif kind in ("tmpfs", "ramfs"):
        yield advice(
            _CHECK, f"{folder} is in memory ({kind})", "set cache.dir to a disk, or everything is fetched again after a restart"
        )
    elif kind == "overlay":
        yield advice(
            _CHECK, f"{folder} is in a container's own layer", "mount a volume there, or the cache goes with the container"
        )


def _kind(folder: Path) -> str:
    """The type of the file system; empty where it cannot be told (proc(5), mountinfo)."""
    best, kind = "", ""
    path = f"{os.path.realpath(folder)}/"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            point = fields.split(" ")[4].replace("\\040", " ").rstrip("/") + "/"
            if path.startswith(point) and len(point) >= len(best):
                best, kind = point, rest.split(" ")[0]
    return kind


def _room(folder: Path, max_size: int, min_free: float) -> Iterator[Finding]:
    room = measure(folder, min_free)
    kept = sum(_sizes(folder / "blobs")) + sum(_sizes(folder / "spool"))
    told = f"{format_size(kept)} cached of {format_size(max_size)} at most, {format_size(room.free)} of {format_size(room.total)} free ({_kind(folder) or 'unknown file system'})"
    usable = kept + room.free - room.reserve
    if room.free < min(room.total // 100, 64 * 1024 * 1024):
        yield problem(
            _CHECK,
            f"the disk of {folder} is full: {told}",
            "make cache.max_size smaller or the disk larger; until then blobs are passed through and not kept",
        )
    elif room.is_low:
        yield problem(
            _CHECK,
            room.shortage(folder),
            f"delete other files on that disk, or set cache.dir to another one; now it holds {told}",
        )
    elif usable < max_size:
        yield advice(
            _CHECK,
            f"{folder} has no room for cache.max_size: {told}",
            f"set cache.max_size to {format_size(usable * 0.95).replace(' ', '')} or less, or make the disk larger",
        )
    elif room.inodes is not None and room.inodes < 10_000:
        yield problem(
            _CHECK,
            f"the file system of {folder} has {room.inodes} inodes left",
            "set cache.dir to another file system, or delete small files",
        )
    else:
        yield ok(_CHECK, f"{folder}: {told}")


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes that each file takes up: those of downloads in progress are longer than what is there."""
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
                        f"everybody on this machine can read {name}'s password in {registry.password_file}",
                        f"chmod o-r {registry.password_file}, its group that of the mirror's user",
                    )
