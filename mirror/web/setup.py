"""How a client is set up: what is to be in its files, and a script that does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirror.clients import Address, Client

_APPENDABLE = frozenset({"/etc/buildkit/buildkitd.toml"})
"""Files that may well be there, and to whose end tables can be added as long as they say nothing of registries."""
_CONTAINERD = "/etc/containerd/config.toml"
_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file for the script; `how` names the shell function that combines it with what is there."""

    path: str
    how: str
    text: str
    """What is to be in it where nothing is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the script needs. Nothing here comes from a request but an address that was checked character by character (clients/address.py)."""

    client: Client
    address: Address
    files: tuple[Wanted, ...]
    patterns: tuple[str, ...]
    """Of all files that may have been changed, also for registries that the mirror no longer serves."""
    tables: dict[int, str]
    """What is to be added to containerd's config.toml, by its version."""
    insecure: bool
    """True where Docker has to be told that the mirror is asked by http."""


def plan(client: Client, address: Address, registries: Sequence[str]) -> Plan:
    files = client.plan(address, registries)
    tables = {}
    for file in files:
        if file.path == _CONTAINERD:
            for version in _VERSIONS:
                begin = f"version = {version}\n"
                tables[version] = file.merge(begin).removeprefix(begin).strip("\n")
    return Plan(
        client,
        address,
        tuple(Wanted(file.path, _how(file.path), file.text) for file in files),
        tuple(file.path for file in client.plan(address, ["*"])),
        tables,
        not address.secure and not address.loopback,
    )


def _how(path: str) -> str:
    if path.endswith(".json"):
        return "as_json"
    if path == _CONTAINERD:
        return "as_containerd"
    return "at_the_end" if path in _APPENDABLE else "alone"
