"""dockerd: ``registry-mirrors`` in daemon.json, used for Docker Hub's images only.

Where that file is, and what makes dockerd read it, depends on how Docker was installed; see `installed_here`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mirror.clients.address import Address
from mirror.clients.files import Client, File
from mirror.clients.merging import change_json, put_first

_BUILDS = "docker build may need systemctl restart docker: BuildKit of Docker 20.10 reads mirrors only when dockerd starts."
_RELOAD_KEEPS = (
    "A reload is not enough: dockerd keeps a mirror that its file no longer names. "
    'Without a restart: write "registry-mirrors": [] into the file, then reload.'
)


def _plan(addresses: Sequence[Address], registries: Sequence[str], *, path: str = "/etc/docker/daemon.json") -> tuple[File, ...]:
    def change(tree: MutableMapping[str, Any]) -> None:
        mirrors = tree.setdefault("registry-mirrors", [])
        urls = [address.url for address in addresses]
        # dockerd takes a slash at the end for the same mirror.
        if [mirror.rstrip("/") for mirror in mirrors[: len(urls)]] != urls:
            put_first(mirrors, *urls)
        for address in addresses:
            if not address.secure and not address.loopback:
                # Not for the mirrors above: for `docker pull mirror.lan:5000/ghcr.io/owner/image`.
                insecure = tree.setdefault("insecure-registries", [])
                if address.authority not in insecure:
                    insecure.append(address.authority)

    return (File(path, lambda text: change_json(text, change)),)


CLIENT = Client(
    "docker",
    "Docker",
    "Docker Hub's images; others by name, through the mirror",
    "systemctl reload docker",
    _plan,
    without_systemd="kill -HUP $(cat /var/run/docker.pid)",
    note=_BUILDS,
    then_undone="systemctl restart docker",
    note_undone=_RELOAD_KEEPS,
)


def installed_here(root: Path, home: Path, uid: int) -> Client:
    """Returns Docker as it is installed under `root` for the user `uid`: Docker Desktop, rootless, a snap, or a package."""

    def at(title: str, path: Path, then: str, then_undone: str, note: str = _BUILDS) -> Client:
        return dataclasses.replace(
            CLIENT,
            title=title,
            then=then,
            then_undone=then_undone,
            without_systemd="",
            note=note,
            plan=functools.partial(_plan, path=f"/{path.relative_to(root)}"),
        )

    if (home / ".docker/desktop").is_dir():
        note = "Docker Desktop runs in a virtual machine, where 127.0.0.1 is not this one: use --mirror http://host.docker.internal:5000."
        restart = "restart Docker Desktop"
        return at("Docker Desktop", home / ".docker/daemon.json", restart, restart, note)
    if uid != 0 and ((root / f"run/user/{uid}/docker.sock").exists() or (home / ".config/systemd/user/docker.service").exists()):
        daemon = home / ".config/docker/daemon.json"
        return at("Docker (rootless)", daemon, "systemctl --user reload docker", "systemctl --user restart docker")
    if (root / "var/snap/docker/current").is_dir() and not (root / "usr/bin/dockerd").exists():
        return at("Docker (snap)", root / "var/snap/docker/current/config/daemon.json", *["snap restart docker"] * 2)
    return CLIENT
