"""podman, cri-o, skopeo, buildah: a drop-in of registries.conf (containers-registries.conf(5), containers-registries.conf.d(5)).

All but cri-o, which reads it at SIGHUP (crio(8)), read it at every pull.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from mirror.clients.address import Address
from mirror.clients.files import Client, File
from mirror.clients.merging import change_toml, put_first


def _plan(addresses: Sequence[Address], registries: Sequence[str]) -> tuple[File, ...]:
    def change(tree: MutableMapping[str, Any]) -> None:
        for registry in registries:
            # One path for each registry: these clients do not say which one they mean.
            ours = [
                {"location": f"{address.authority}/{registry}"} | ({} if address.secure else {"insecure": True})
                for address in addresses
            ]
            present = [entry for entry in tree.get("registry", ()) if entry.get("prefix", entry.get("location")) == registry]
            if not present:
                _append(tree, "registry", {"location": registry, "mirror": ours})
            elif "mirror" not in present[0]:
                present[0]["mirror"] = ours
            else:
                put_first(present[0]["mirror"], *(_present(present[0]["mirror"], mirror) for mirror in ours))

    return (File("/etc/containers/registries.conf.d/mirror.conf", lambda text: change_toml(text, change)),)


def _present(mirrors: list[Any], wanted: dict[str, Any]) -> Any:
    """Returns the table that is there for that location, with all that it says; else `wanted`."""
    return next((mirror for mirror in mirrors if mirror["location"] == wanted["location"]), wanted)


def _append(tree: MutableMapping[str, Any], key: str, table: dict[str, Any]) -> None:
    if key in tree:
        tree[key].append(table)
    else:
        tree[key] = [table]


_WHEN = "podman, skopeo and buildah read it at the next pull; cri-o does after systemctl reload crio."
CLIENT = Client(
    "podman",
    "podman, cri-o, skopeo, buildah",
    "all registries that the mirror serves",
    "",
    _plan,
    note=_WHEN,
    note_undone=_WHEN,
)
