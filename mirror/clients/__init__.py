"""The clients: which files tell each of them to ask a mirror, and what is to be in those files.

Texts in, texts out; only `client_here` looks at the machine. The command line writes them (mirror/cli/configure.py), the dashboard shows them, docs/clients.md is held to them.
"""

from __future__ import annotations

import os
from pathlib import Path

from mirror.clients import buildkit, containerd, docker, k3s, podman
from mirror.clients.address import Address
from mirror.clients.files import Client, Conflict, File

CLIENTS = {client.name: client for client in (docker.CLIENT, containerd.CLIENT, podman.CLIENT, buildkit.CLIENT, k3s.CLIENT)}
"""All clients by their names, in the order in which people are to see them."""


def client_here(name: str, root: Path = Path("/")) -> Client:
    """A client as it is installed on this machine; under another `root`, as it usually is."""
    if name == "docker" and root == Path("/"):
        return docker.installed_here(root, Path(os.path.expanduser("~")), os.geteuid())
    return CLIENTS[name]


__all__ = ["CLIENTS", "Address", "Client", "Conflict", "File", "client_here"]
