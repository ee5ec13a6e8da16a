"""What is wrong with a setting, in a line: key, source, form expected and value found; secrets are never shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any


def tell(fault: Any, layers: list[tuple[str, dict[str, Any]]], known_keys: Callable[[list[str]], list[str]]) -> str:
    """A line for one of pydantic's errors. `layers` are the sources by name, later ones winning; `known_keys` gives the settings beside one."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(f'"{part}"' if "." in part else part for part in path)
    where, value = "", None
    for name, layer in reversed(layers):
        found, value = _look_up(layer, path)
        if found:
            where = f" ({name})"
            break
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], known_keys(path), 1)
        return f"{key}{where}: there is no such setting" + (f"; is {near[0]!r} meant?" if near else "")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}{where}: {message}" + (
        "" if not where or {"password", "admin_token"} & set(path) or _holds_tables(value) else f"; found {shown(value)}"
    )


def shown(value: object) -> str:
    """A value as it may be shown: without what stands before an @ in a URL."""
    return repr(re.sub(r"//[^/@]*@", "//…@", str(value))[:100])


def _holds_tables(value: Any) -> bool:
    """True where passwords may be inside."""
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_holds_tables, value)))


def _look_up(layer: Any, path: list[str]) -> tuple[bool, Any]:
    for part in path:
        if isinstance(layer, Mapping) and part in layer:
            layer = layer[part]
        else:
            return isinstance(layer, list | tuple), layer
    return True, layer
