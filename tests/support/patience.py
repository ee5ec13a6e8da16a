"""How long tests wait for what must come."""

from __future__ import annotations

import time
from collections.abc import Iterator

PATIENCE = 120.0
"""Seconds: enough for a machine ten times as slow as a usual one. Only a test that fails waits that long."""


def patiently() -> Iterator[None]:
    """Yields again and again; fails the test when the loop over it is not left in time: ``for _ in patiently(): …; await asyncio.sleep(0.1)``."""
    deadline = time.monotonic() + PATIENCE
    while True:
        yield
        assert time.monotonic() < deadline, "it never came"
