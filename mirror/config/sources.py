"""Where settings come from: the trees of a TOML file and of the environment, how a later tree is laid over an earlier one, and a default that depends on the user."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

_LISTS = ("warm", "access", "oidc", "guard", "webhook", "scan")
"""Settings that are a list of tables."""


class ConfigError(Exception):
    """The settings cannot be used; `faults` are lines for the person who wrote them."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def from_file(file: Path) -> dict[str, Any]:
    """Return the tree of a TOML file. Raises ConfigError."""
    try:
        with open(file, "rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = '; a registry\'s name needs quotes: [registries."registry.lan:5000"]' if _has_unquoted_registry(file) else ""
        raise ConfigError([f"{file}: is not TOML: {error}{hint}"]) from None


def _has_unquoted_registry(file: Path) -> bool:
    """Whether a table such as ``[registries.registry.lan:5000]`` is in a file: TOML allows a colon in quotes only."""
    return re.search(rb"^\s*\[\s*registries\.[^\"'\]\n]*:", file.read_bytes(), re.MULTILINE) is not None


def from_environment(environ: Mapping[str, str], tables: Collection[str]) -> dict[str, Any]:
    """Returns the tree of variables such as ``MIRROR_CACHE__MAX_SIZE``, whose case does not count.

    A list, or a table as one variable, is JSON; variables of single settings are laid over that of their table. Raises ConfigError if a table is not JSON.
    """
    found: dict[str, Any] = {}
    variables = [(key.lower().removeprefix("mirror_").split("__"), key) for key in environ if key.lower().startswith("mirror_")]
    for path, key in sorted(variables, key=lambda variable: len(variable[0])):
        if len(path) == 1 and path[0] not in tables:
            continue
        value = _parsed(environ[key])
        if len(path) == 1 and not isinstance(value, dict) and not (path[0] in _LISTS and isinstance(value, list)):
            raise ConfigError([f"{key}: a table given as one variable must be JSON"])
        for part in reversed(path):
            value = {part: value}
        merge(found, value)
    return found


def _parsed(text: str) -> Any:
    """Returns the list or table that a text is in JSON; otherwise the text."""
    if text.lstrip().startswith(("[", "{")):
        # Not everything with a bracket is a list: an address may be [::1]:5000.
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay `layer` over `into`, table by table."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            below = into.setdefault(key, {})
            if isinstance(below, dict):
                merge(below, value)
                continue
        into[key] = value


def default_cache_dir() -> Path:
    """Return /var/lib/mirror where this user can write it, else the user's own cache folder (XDG base directory specification). Raises ConfigError."""
    system = Path("/var/lib/mirror")
    if os.geteuid() == 0 or os.access(system, os.W_OK):
        return system
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirror"
    except RuntimeError:
        raise ConfigError(
            ["cache.dir: this user has no home directory for a cache; set --cache-dir DIR or MIRROR_CACHE__DIR"]
        ) from None
