"""Everything about the package is in pyproject.toml, except that a build notes the commit it was made from, for ``mirror --version``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCommit(build_py):
    """Writes ``mirror/COMMIT``: MIRROR_COMMIT, or what git says; nothing where neither is known."""

    def run(self) -> None:
        super().run()
        commit = os.environ.get("MIRROR_COMMIT") or _described()
        if commit and not self.editable_mode:
            Path(self.build_lib, "mirror", "COMMIT").write_text(f"{commit}\n")


def _described() -> str:
    source = Path(__file__).parent
    # In a checkout of its own only: a copy of the source may lie in that of another program.
    if not (source / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


setup(cmdclass={"build_py": BuildWithCommit})
