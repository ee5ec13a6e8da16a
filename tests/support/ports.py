"""Ports for servers that tests start."""

from __future__ import annotations

import functools
import itertools
import os
import random
import socket
from collections.abc import Iterator

_LOWEST = 20_000
_HIGHEST = 32_767


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nobody uses.

    It is below the range that Linux takes source ports and port 0 from (net.ipv4.ip_local_port_range, 32768 and up by default), so that no connection and no other
    test's server gets it before it is used, or while a server that stops for a while does not listen on it. Processes of pytest-xdist have ports of their own.
    """
    for port in _ports():
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("an endless iterator has ended")


@functools.cache
def _ports() -> Iterator[int]:
    """This process's ports without end: none again before all others."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    step = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = list(range(_LOWEST + number, _HIGHEST + 1, step))
    random.SystemRandom().shuffle(ports)
    return itertools.cycle(ports)
