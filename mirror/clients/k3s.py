"""k3s: registries.yaml, from which it writes containerd's hosts.toml at its start. RKE2 reads the same, from /etc/rancher/rke2."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from mirror.clients.address import Address
from mirror.clients.files import Client, File
from mirror.clients.merging import change_yaml, put_first


def _plan(addresses: Sequence[Address], registries: Sequence[str]) -> tuple[File, ...]:
    # k3s takes a path for all of it, where containerd appends /v2.
    urls = [f"{address.url}/v2" if "/t/" in address.url else address.url for address in addresses]

    def change(tree: MutableMapping[str, Any]) -> None:
        if tree.get("mirrors") is None:
            tree["mirrors"] = {}
        for registry in registries:
            if tree["mirrors"].get(registry) is None:
                tree["mirrors"][registry] = {}
            table = tree["mirrors"][registry]
            if table.get("endpoint") is None:
                table["endpoint"] = [*urls]
            else:
                put_first(table["endpoint"], *urls)

    return (File("/etc/rancher/k3s/registries.yaml", lambda text: change_yaml(text, change)),)


_AGENTS = "On agents: systemctl restart k3s-agent."
CLIENT = Client(
    "k3s", "k3s", "all registries that the mirror serves", "systemctl restart k3s", _plan, note=_AGENTS, note_undone=_AGENTS
)
