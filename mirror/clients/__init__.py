"""The clients: which files tell each of them to ask a mirror, and what is to be in those files.

Pure: texts in, texts out. The command line writes them (mirror/cli/configure.py), the dashboard shows them, README's snippets are held to them.
"""

from mirror.clients import buildkit, containerd, docker, k3s, podman
from mirror.clients.address import Address
from mirror.clients.files import Client, Conflict, File

CLIENTS = {client.name: client for client in (docker.CLIENT, containerd.CLIENT, podman.CLIENT, buildkit.CLIENT, k3s.CLIENT)}
"""All clients by their names, in the order in which people are to see them."""

__all__ = ["CLIENTS", "Address", "Client", "Conflict", "File"]
