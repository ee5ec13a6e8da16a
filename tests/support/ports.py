"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket

_RANDOM = random.SystemRandom()


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nobody uses.

    It is below the range that Linux takes source ports and port 0 from (net.ipv4.ip_local_port_range, 32768 and up by default), so that no connection and no other
    test's server gets it before it is used, or while a server that stops for a while does not listen on it.
    """
    while True:
        port = _RANDOM.randrange(20_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
