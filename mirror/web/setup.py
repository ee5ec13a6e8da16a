"""Plans the setup of a client: the contents of its files, and the values of the script that writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirror.clients import Address, Client

_APPENDABLE = frozenset({"/etc/buildkit/buildkitd.toml"})
"""Files that often exist. Tables can be appended to them if they do not mention registries yet."""
_CONTAINERD = "/etc/containerd/config.toml"
_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class ScriptFile:
    """A file for the script to write; `merge` names the shell function that merges it with an existing one."""

    path: str
    merge: str
    text: str
    """The content of a file that does not exist yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The values of the script. The only one that comes from a request is the address, which is validated character by character (clients/address.py)."""

    client: Client
    address: Address
    files: tuple[ScriptFile, ...]
    patterns: tuple[str, ...]
    """Shell patterns of all files that the script may have changed, also for registries that the mirror no longer serves."""
    tables: dict[int, str]
    """The tables to add to containerd's config.toml, by its version."""
    insecure: bool
    """True if Docker needs the mirror in ``insecure-registries``, since it is reached by http."""


def plan(client: Client, address: Address, registries: Sequence[str]) -> Plan:
    """Returns the plan of a client that reaches the mirror at `address`, for those registries."""
    files = client.plan([address], registries)
    tables = {}
    for file in files:
        if file.path == _CONTAINERD:
            for version in _VERSIONS:
                begin = f"version = {version}\n"
                tables[version] = file.merge(begin).removeprefix(begin).strip("\n")
    return Plan(
        client,
        address,
        tuple(ScriptFile(file.path, _merge_function(file.path), file.text) for file in files),
        tuple(file.path for file in client.plan([address], ["*"])),
        tables,
        not address.secure and not address.loopback,
    )


def _merge_function(path: str) -> str:
    if path.endswith(".json"):
        return "as_json"
    if path == _CONTAINERD:
        return "as_containerd"
    return "at_the_end" if path in _APPENDABLE else "new_only"
