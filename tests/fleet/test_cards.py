"""A fleet whose mirrors have a network card each, by `tc` in a network of its own, and thirty clients: whatever is killed or stopped, all clients get what they asked for."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from benchmarks.fleet.network import inside
from tests.support.patience import PATIENCE
from tests.support.programs import require, require_root


@pytest.mark.parametrize("scenario", ["each-fault", "random", "lists"])
def test_no_client_fails_and_the_registry_sends_little_twice(tmp_path: Path, scenario: str) -> None:
    """Home, another mirror and the bucket, killed and stopped before and in the middle; random schedules; lists that disagree in a ring, and a fleet that grows and shrinks.

    The schedules, their bounds and their seed are in the output: tests/fleet/faults.py runs them.
    """
    require_root("a network with cards")
    require("tc", "unshare", "versitygw")
    seed = str(random.SystemRandom().randrange(2**32))
    command = inside("tests.fleet.faults", scenario, str(tmp_path), seed)
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
