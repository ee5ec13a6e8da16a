"""buildkit: buildkitd.toml. Mirrors are hosts without a scheme; a table for the mirror itself says that it uses http."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from mirror.clients.address import Address
from mirror.clients.files import Client, File
from mirror.clients.merging import change_toml, put_first


def _plan(addresses: Sequence[Address], registries: Sequence[str]) -> tuple[File, ...]:
    def change(tree: MutableMapping[str, Any]) -> None:
        tables = tree.setdefault("registry", {})
        for registry in registries:
            table = tables.setdefault(registry, {})
            if "mirrors" not in table:
                table["mirrors"] = [address.authority for address in addresses]
            else:
                put_first(table["mirrors"], *(address.authority for address in addresses))
        for address in addresses:
            if not address.secure:
                tables.setdefault(address.authority, {})["http"] = True

    return (File("/etc/buildkit/buildkitd.toml", lambda text: change_toml(text, change)),)


CLIENT = Client("buildkit", "buildkit", "all registries that the mirror serves", "systemctl restart buildkit", _plan)
