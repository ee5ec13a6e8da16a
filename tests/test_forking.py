"""What tests fork in place of starting it (tests/support/forking.py) does what a start does."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import mirror
from tests.support.forking import PROGRAM, can_fork
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["ls", "--json"], ""), (["gc", "--nonsense"], ""), (["import", "-"], "no archive")]
)
def test_a_command_that_is_forked_does_what_one_that_is_started_does(
    arguments: list[str], stdin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the same, ends with the same status, and takes its settings from its own environment, folder and standard input."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MIRROR_CACHE__DIR", "../cache")
    command = [*PROGRAM, *arguments]
    assert can_fork(command, os.environ)
    forked = mirror(*arguments, stdin=stdin)
    started = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_a_mirror_that_is_forked_has_nothing_of_the_server_that_forked_it(tmp_path: Path) -> None:
    """It leads a session of its own, has the standard streams that it was given, handles signals, and its exit status is told."""
    with MirrorProcess(tmp_path / "cache", {}) as running:
        assert os.getsid(running.pid) == running.pid
        descriptors = [os.readlink(one) for one in Path(f"/proc/{running.pid}/fd").iterdir() if int(one.name) < 3]
        assert sorted(descriptors) == sorted(["/dev/null", f"{tmp_path}/cache.log", f"{tmp_path}/cache.log"])
        running.kill()
        assert running.wait() == -signal.SIGKILL
        running.start()
        assert running.terminate() == 0


def test_what_imports_read_is_not_shared(tmp_path: Path) -> None:
    """A command with another interpreter's setting, or another program, is started."""
    assert not can_fork([*PROGRAM, "ls"], {**os.environ, "PYTHONWARNINGS": "error"})
    assert not can_fork(["prlimit", *PROGRAM, "ls"], os.environ)
