"""Which file system a folder is on, and whether a cache may be there.

A cache relies on locks (flock), on a database whose processes share memory (SQLite's write-ahead log, https://www.sqlite.org/wal.html, "same host computer"), and on
files that are whole once they are renamed. Where several machines share a folder these hold on each of them, not between them: there a blob was fetched nine
times, and the catalog lost rows, without an error.
"""

from __future__ import annotations

import os
from pathlib import Path

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "afs", "lustre", "beegfs", "gpfs", "glusterfs"})
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs", "fuse.grpcfuse", "fuse.mergerfs", "fuse.shfs"})
"""Disks of this machine behind FUSE: NTFS, rootless containers, Docker Desktop, pools of disks. All others (sshfs, s3fs, rclone, GlusterFS …) reach for a network."""


def kind_of(folder: Path) -> str:
    """Returns the type of the file system that a folder is on, or would be (proc(5), mountinfo); empty if it cannot be known. Blocks."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        # By the mount's own number: a path says nothing where one mount covers another. What mounts itself when it is used is mounted by opening it.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            information = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        finally:
            os.close(descriptor)
        number = dict(line.split(":", 1) for line in information.splitlines() if ":" in line)["mnt_id"].strip()
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            mount, _, rest = line.partition(" - ")
            if mount.split(" ", 1)[0] == number:
                return rest.split(" ")[0]
    except (OSError, KeyError):
        # Not Linux, or this user may not look.
        return ""
    return ""


def is_network(kind: str) -> bool:
    """Whether a file system of that type may be shared with other machines, or keeps its files on one."""
    return kind in _NETWORK or (kind.partition(".")[0] == "fuse" and kind not in _LOCAL_FUSE)


def refusal(folder: Path) -> str:
    """A sentence about why no cache may be in a folder; empty where one may. Blocks."""
    kind = kind_of(folder)
    if not is_network(kind):
        return ""
    return (
        f"the cache directory {folder} is on a network file system ({kind}), where several machines would fetch everything several times"
        " and lose what is cached without an error"
    )
