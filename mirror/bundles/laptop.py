"""What `mirror export --laptop` puts beside a bundle: a program that serves it, in one file that needs only Python, and files that start it."""

from __future__ import annotations

import io
import zipfile
from importlib.resources import files
from typing import NamedTuple

MARK = b"mirror export --laptop"
"""Found in each of the files: one without it was made by somebody else."""
PROGRAM = "mirror.pyz"
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = b"from mirror.laptop.__main__ import main\n\nraise SystemExit(main())\n"


class Companion(NamedTuple):
    """A file beside a bundle. `mode` has its permissions."""

    name: str
    content: bytes
    mode: int


def companions() -> list[Companion]:
    """Returns the files. A version of the mirror makes the same bytes everywhere."""
    sources = files("mirror.laptop") / "files"
    start = (sources / "start.sh").read_bytes()
    return [
        Companion(PROGRAM, _program(), 0o755),
        Companion("start.sh", start, 0o755),
        # macOS opens files with this ending in a terminal.
        Companion("start.command", start, 0o755),
        Companion("start.bat", (sources / "start.bat").read_bytes().replace(b"\n", b"\r\n"), 0o644),
        Companion("README.txt", (sources / "README.txt").read_bytes(), 0o644),
    ]


def _program() -> bytes:
    """The package `mirror.laptop` as a zipapp (the standard library's documentation, "zipapp"), uncompressed, so that no version of zlib has a say in its bytes."""
    package = files("mirror.laptop")
    members = {"__main__.py": _MAIN, "mirror/__init__.py": (files("mirror") / "__init__.py").read_bytes()}
    for source in sorted(package.iterdir(), key=lambda entry: entry.name):
        if source.name.endswith(".py"):
            members[f"mirror/laptop/{source.name}"] = source.read_bytes()
    packed = io.BytesIO()
    packed.write(_SHEBANG)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = MARK
        for name, content in members.items():
            # The earliest time that a zip file can hold is everybody's.
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, content)
    return packed.getvalue()
