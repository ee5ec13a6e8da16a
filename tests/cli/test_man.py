"""The manual page, and the commit that ``mirror --version`` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from click import Context

from mirror.cli import main
from tests.support.commands import mirror
from tests.support.patience import PATIENCE
from tests.support.programs import require

ROOT = Path(__file__).parents[2]


def test_the_manual_page_has_every_command_and_option() -> None:
    """And nothing in it is taken for a macro or cut off: groff has no warning."""
    require("groff")
    page = mirror("man").stdout
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou"], input=page, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stderr == ""
    context = Context(main, info_name="mirror")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert f"mirror {name}" in done.stdout
        for parameter in command.params:
            assert all(option in done.stdout for option in parameter.opts if option.startswith("--")), parameter


def test_an_installed_program_knows_its_commit(tmp_path: Path) -> None:
    """From MIRROR_COMMIT at the build, as an image's build has no checkout; without both, only the version is printed."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "mirror", source / "mirror", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)

    def version(commit: str) -> str:
        built = tmp_path / f"built-{commit}"
        environment = {**os.environ, "MIRROR_COMMIT": commit}
        command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)]
        subprocess.run(command, cwd=source, env=environment, capture_output=True, timeout=PATIENCE, check=True)
        done = subprocess.run(
            [sys.executable, "-m", "mirror", "--version"], cwd=built, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return done.stdout

    assert version("abc1234").endswith(" (commit abc1234)\n")
    assert "commit" not in version("")
