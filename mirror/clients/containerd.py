"""containerd: a ``hosts.toml`` for each registry, and in config.toml the folder where Kubernetes' side of it (CRI) finds them.

Docker 28 and newer, nerdctl (``--hosts-dir``) and ctr (``--hosts-dir``) read the same files. containerd's docs/hosts.md and docs/cri/registry.md.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping, Sequence
from typing import Any

from mirror.clients.address import Address
from mirror.clients.files import Client, Conflict, File
from mirror.clients.merging import change_toml

FOLDER = "/etc/containerd/certs.d"

_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}
"""The version of config.toml to the plugin that pulls."""


def _plan(addresses: Sequence[Address], registries: Sequence[str]) -> tuple[File, ...]:
    def hosts(tree: MutableMapping[str, Any]) -> None:
        present = tree.pop("host", {})
        ours = {address.url: present.pop(address.url, {"capabilities": ["pull", "resolve"]}) for address in addresses}
        # Asked in the order of the file.
        tree["host"] = {**ours, **present}

    merge = functools.partial(change_toml, change=hosts)
    files = [File(f"{FOLDER}/{registry}/hosts.toml", merge) for registry in registries]
    return (*files, File("/etc/containerd/config.toml", lambda text: change_toml(text, _config_path)))


def _config_path(tree: MutableMapping[str, Any]) -> None:
    if not tree:
        # Every containerd since 1.5 reads version 2.
        tree["version"] = 2
    if {"cri", *_PLUGINS.values()} & set(tree.get("disabled_plugins", ())):
        # Then nothing reads a config_path: who pulls names the folder itself.
        return
    version = tree.get("version", 1)
    if version not in _PLUGINS:
        raise Conflict(
            f"has version {version}, of which this program knows nothing: make it version 2 or 3 (containerd config migrate), or set config_path there by hand"
        )
    registry = tree.setdefault("plugins", {}).setdefault(_PLUGINS[version], {}).setdefault("registry", {})
    if registry.get("mirrors") or registry.get("configs"):
        raise Conflict(
            f"has registry.mirrors or registry.configs, with which containerd refuses a config_path: move what they say to {FOLDER}/<registry>/hosts.toml first"
        )
    folders = registry.get("config_path") or ""
    if folders and FOLDER not in folders.split(":"):
        raise Conflict(f'has config_path = "{folders}": add ":{FOLDER}" to it, or move those files to {FOLDER}')
    if not folders:
        registry["config_path"] = FOLDER


CLIENT = Client("containerd", "containerd", "all registries that the mirror serves", "systemctl restart containerd", _plan)
