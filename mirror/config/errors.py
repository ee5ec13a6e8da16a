"""Describes a setting that is wrong in one line: its key, its source, what is expected and the value found. Secrets are never shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from mirror.redaction import redacted


def describe(fault: Any, layers: list[tuple[str, dict[str, Any]]], known_keys: Callable[[list[str]], list[str]]) -> str:
    """Returns a line for one of pydantic's errors. Of `layers`, the sources by name, later ones win; `known_keys` returns the settings beside one."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(f'"{part}"' if "." in part else part for part in path)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "literal_error":
        message = f"{fault['ctx']['expected']} is expected"
    holders = [(name, value) for name, layer in layers for found, value in [_look_up(layer, path)] if found]
    value = holders[-1][1] if holders else None
    if isinstance(value, Mapping) and fault["type"] != "extra_forbidden":
        # The fault is the whole table's: its sources are those of the settings that the message names.
        holders = [holder for holder in holders if _names_a_key(message, holder[1])] or holders
    else:
        holders = holders[-1:]
    where = f" ({' and '.join(name for name, _ in holders)})" if holders else ""
    if fault["type"] == "extra_forbidden":
        if path[0] == "registries" and len(path) > 2 and isinstance(value, Mapping):
            registry = ".".join(_unquoted(path[1:], value, known_keys(path)))
            return f'[registries.{registry}]{where}: a registry\'s name needs quotes: [registries."{registry}"]'
        near = difflib.get_close_matches(path[-1], known_keys(path), 1)
        return f"{key}{where}: there is no such setting" + (f"; is {near[0]!r} meant?" if near else "")
    if not path:
        # The fault is between tables: the message names the settings.
        return f"{message}{where}"
    return f"{key}{where}: {message}" + (
        ""
        if not where or {"password", "admin_token"} & set(path) or _is_webhook_url(path) or _holds_tables(value)
        else f"; found {_shown(value, path)}"
    )


def _names_a_key(message: str, table: Any) -> bool:
    return isinstance(table, Mapping) and any(re.search(rf"(?<![\w.]){re.escape(str(key))}(?!\w)", message) for key in table)


def _unquoted(parts: list[str], table: Any, settings: list[str]) -> list[str]:
    """Returns the parts of a registry's name that TOML read as nested tables, because it was not quoted."""
    while isinstance(table, Mapping) and len(table) == 1:
        ((name, below),) = table.items()
        if name in settings or not isinstance(below, Mapping):
            break
        parts, table = [*parts, name], below
    return parts


def shown(value: object) -> str:
    """Formats a value without what may be secret in a URL."""
    return repr(redacted(str(value))[:100])


def _shown(value: object, path: list[str]) -> str:
    # A proxy is often written without a scheme: user:password@host:port.
    return shown(f"//{value}").replace("//", "", 1) if path[-1] == "proxy" and "//" not in str(value) else shown(value)


def _is_webhook_url(path: list[str]) -> bool:
    """Their paths are secrets, too. Where a table is expected, a URL may have been written."""
    return path[0] == "webhook" and (path[-1] == "url" or len(path) < 3)


def _holds_tables(value: Any) -> bool:
    """Returns whether passwords may be inside."""
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_holds_tables, value)))


def _look_up(layer: Any, path: list[str]) -> tuple[bool, Any]:
    for part in path:
        if isinstance(layer, Mapping) and part in layer:
            layer = layer[part]
        elif isinstance(layer, list | tuple) and part.isdigit() and int(part) < len(layer):
            layer = layer[int(part)]
        elif isinstance(layer, str) and part == "url":
            # An endpoint that is not a table.
            break
        else:
            return isinstance(layer, list | tuple), layer
    return True, layer
