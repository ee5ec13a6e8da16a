"""``mirror …`` as a person types it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.forking import run
from tests.support.patience import PATIENCE
from tests.support.scripted import Scripted


def mirror(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, which never is a traceback."""
    done = mirror_bytes(*arguments, stdin=stdin.encode(), **environment)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def mirror_bytes(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The same, for commands whose input or output is an archive."""
    done = run(arguments, stdin, {**os.environ, **environment}, PATIENCE)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


class Commands:
    """Commands on one cache directory, beside whatever else uses it. They leave this event loop, in which upstream lives, to run."""

    def __init__(self, directory: Path, upstream: Scripted | None = None) -> None:
        self.flags = ["--cache-dir", str(directory)]
        if upstream is not None:
            self.flags += ["--upstream", f"docker.io={upstream.url}"]

    async def __call__(self, *arguments: str, status: int = 0, stdin: str = "", **environment: str) -> str:
        """What a command prints on standard output; the test fails where it ends with another status."""
        done = await self.run(*arguments, stdin=stdin, **environment)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done.stdout

    async def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(mirror, *arguments, *self.flags, stdin=stdin, **environment)

    async def json(self, *arguments: str, status: int = 0, **environment: str) -> Any:
        return json.loads(await self(*arguments, "--json", status=status, **environment))
