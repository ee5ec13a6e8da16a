"""What `mirror export --laptop` puts beside a bundle: a program that serves it, in one file that needs only Python, and files that start it."""

from __future__ import annotations

import io
import zipfile
from importlib.resources import files
from typing import NamedTuple

MARK = b"mirror export --laptop"
"""Each of the files contains this; one without it is somebody else's."""
PROGRAM = "mirror.pyz"
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = b"from mirror.laptop.__main__ import main\n\nraise SystemExit(main())\n"


class Companion(NamedTuple):
    """A file beside a bundle. `mode` has its permissions."""

    name: str
    content: bytes
    mode: int


def companions() -> list[Companion]:
    """Returns the files. The bytes depend only on the version of the mirror."""
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
    """The package `mirror.laptop` as a zipapp (the standard library's documentation, "zipapp"), uncompressed, so that its bytes do not depend on the version of zlib."""
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
            # The earliest time that a zip file can hold, so that the bytes do not depend on the time.
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, content)
    return packed.getvalue()
