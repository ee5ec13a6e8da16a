"""The clients: which files make each of them use a mirror, and what these contain.

Everything maps texts to texts; only `client_here`, `machine_id` and `runs_systemd` examine the machine. The command line writes the files (mirror/cli/configure.py), the
dashboard shows them, and a test holds docs/clients.md to them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from mirror.clients import buildkit, containerd, docker, k3s, podman
from mirror.clients.address import Address, in_order_for
from mirror.clients.files import Client, Conflict, File, runs_systemd

CLIENTS = {client.name: client for client in (docker.CLIENT, containerd.CLIENT, podman.CLIENT, buildkit.CLIENT, k3s.CLIENT)}
"""All clients by name, in the order in which they are shown."""


def client_here(name: str, root: Path = Path("/")) -> Client:
    """Returns a client as it is installed on this machine; under another `root`, as it usually is."""
    if name == "docker" and root == Path("/"):
        return docker.installed_here(root, Path(os.path.expanduser("~")), os.geteuid())
    return CLIENTS[name]


def machine_id(root: Path = Path("/")) -> str:
    """Returns what tells this machine from others (machine-id(5)), else its host's name; under another `root` empty where an image has none yet."""
    try:
        found = (root / "etc/machine-id").read_text().strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    if found and found != "uninitialized":
        return found
    return socket.gethostname() if root == Path("/") else ""


__all__ = ["CLIENTS", "Address", "Client", "Conflict", "File", "client_here", "in_order_for", "machine_id", "runs_systemd"]
