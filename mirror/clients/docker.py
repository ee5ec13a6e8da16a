"""dockerd: ``registry-mirrors`` in daemon.json, which it asks for Docker Hub's images only."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from mirror.clients.address import Address
from mirror.clients.files import Client, File
from mirror.clients.merging import change_json, put_first


def _plan(address: Address, registries: Sequence[str]) -> tuple[File, ...]:
    def change(tree: MutableMapping[str, Any]) -> None:
        mirrors = tree.setdefault("registry-mirrors", [])
        # dockerd takes a slash at the end for the same mirror.
        if [mirror.rstrip("/") for mirror in mirrors[:1]] != [address.url]:
            put_first(mirrors, address.url)
        if not address.secure and not address.loopback:
            # Not for the mirrors above: for `docker pull mirror.lan:5000/ghcr.io/owner/image`.
            insecure = tree.setdefault("insecure-registries", [])
            if address.authority not in insecure:
                insecure.append(address.authority)

    return (File("/etc/docker/daemon.json", lambda text: change_json(text, change)),)


CLIENT = Client("docker", "Docker", "Docker Hub's images; others by name, through the mirror", "systemctl reload docker", _plan)
