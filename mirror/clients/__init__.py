"""The clients: which files make each of them use a mirror, and what these contain.

Everything maps texts to texts; only `client_here` and `runs_systemd` examine the machine. The command line writes the files (mirror/cli/configure.py), the
dashboard shows them, and a test holds docs/clients.md to them.
"""

from __future__ import annotations

import os
from pathlib import Path

from mirror.clients import buildkit, containerd, docker, k3s, podman
from mirror.clients.address import Address
from mirror.clients.files import Client, Conflict, File, runs_systemd

CLIENTS = {client.name: client for client in (docker.CLIENT, containerd.CLIENT, podman.CLIENT, buildkit.CLIENT, k3s.CLIENT)}
"""All clients by name, in the order in which they are shown."""


def client_here(name: str, root: Path = Path("/")) -> Client:
    """Returns a client as it is installed on this machine; under another `root`, as it usually is."""
    if name == "docker" and root == Path("/"):
        return docker.installed_here(root, Path(os.path.expanduser("~")), os.geteuid())
    return CLIENTS[name]


__all__ = ["CLIENTS", "Address", "Client", "Conflict", "File", "client_here", "runs_systemd"]
