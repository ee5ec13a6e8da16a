"""``mirror.pyz`` beside a bundle, started as a person starts it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.ports import free_port
from tests.support.programs import Program, answers

PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or "python3"
"""One without the mirror's packages, where there is one."""


class Laptop:
    """Serves the bundles of a folder."""

    def __init__(self, folder: Path, command: list[str] | None = None) -> None:
        """`command` is what starts it, ``sh start.sh`` by default."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        started = command or ["sh", str(folder / "start.sh")]
        # Nothing of the environment that tests run in: start.sh has to find a Python by itself.
        plain = ["env", "-i", "PATH=/usr/bin:/bin:/usr/local/bin", *started, "--host", "127.0.0.1", "--port", str(port)]
        self._program = Program(plain, folder.parent / f"laptop-{port}.log")
        self._program.wait_until(lambda: answers(f"{self.url}/v2/"))

    @property
    def log(self) -> str:
        return self._program.log

    def stop(self) -> None:
        self._program.stop()
