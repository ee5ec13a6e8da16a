"""Changes TOML, YAML and JSON while keeping the rest of a file: comments, order and, except for JSON, layout.

A change is a function on dicts and lists. It is applied twice, to a document that keeps the layout and to plain data. The results must agree, so that no file
is written with another meaning than intended.

The libraries that keep a layout are imported where they are used: the server shows what to write, and changes no file.
"""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Callable, MutableMapping
from typing import Any

from mirror.clients.files import Conflict

Change = Callable[[MutableMapping[str, Any]], None]
"""May raise Conflict, and TypeError, AttributeError, KeyError or ValueError if the data has an unexpected shape."""

_SHAPE = (TypeError, AttributeError, KeyError, ValueError)
_UNSAFE = "is laid out in a way that cannot be changed safely: add by hand what is shown for an empty file"


def change_toml(text: str, change: Change) -> str:
    """Raises Conflict."""
    import tomlkit
    import tomlkit.exceptions

    try:
        plain = tomllib.loads(text)
        document = tomlkit.parse(text)
    except (tomllib.TOMLDecodeError, tomlkit.exceptions.ParseError) as error:
        raise Conflict(f"is not TOML: {error}") from None
    if not _wanted(plain, change):
        return text
    try:
        change(document)
        changed = tomlkit.dumps(document)
        agree = tomllib.loads(changed) == plain
    except (tomlkit.exceptions.TOMLKitError, *_SHAPE):
        agree = False
    if not agree:
        raise Conflict(_UNSAFE)
    return changed


def change_yaml(text: str, change: Change) -> str:
    """Raises Conflict."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import YAMLError

    layout = YAML()
    layout.preserve_quotes = True
    layout.width = 4096
    layout.indent(mapping=2, sequence=4, offset=2)
    try:
        plain = YAML(typ="safe", pure=True).load(text)
        document = layout.load(text)
    except YAMLError as error:
        raise Conflict(f"is not YAML: {' '.join(str(error).split())[:300]}") from None
    comments = ""
    if plain is None:
        # Nothing, or comments only.
        comments, plain, document = text, {}, CommentedMap()
    if not isinstance(plain, dict):
        raise Conflict("is not a YAML mapping")
    if not _wanted(plain, change):
        return text
    written = io.StringIO()
    try:
        change(document)
        layout.dump(document, written)
        changed = comments + written.getvalue()
        agree = YAML(typ="safe", pure=True).load(changed) == plain
    except (YAMLError, *_SHAPE):
        agree = False
    if not agree:
        raise Conflict(_UNSAFE)
    return changed


def change_json(text: str, change: Change) -> str:
    """Raises Conflict."""
    try:
        plain = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Conflict(f"is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Conflict("is not a JSON object")
    if not _wanted(plain, change):
        return text
    return json.dumps(plain, indent=_indentation(text), ensure_ascii=False) + "\n"


def put_first(values: list[Any], *wanted: Any) -> None:
    """Puts `wanted` at the front of a list in this order, moving what is present. Raises AttributeError if `values` is not a list."""
    for value in reversed(wanted):
        if value in values:
            values.remove(value)
        values.insert(0, value)


def _wanted(plain: dict[str, Any], change: Change) -> bool:
    """Applies the change to plain data. Returns whether it changed anything. Raises Conflict."""
    # The order matters too: mirrors are tried in order.
    before = repr(plain)
    try:
        change(plain)
    except _SHAPE:
        raise Conflict("has a table, list or text where its program expects another of them") from None
    return repr(plain) != before


def _indentation(text: str) -> int | str:
    # JSON's own white space only: a file may be of another, and then holds nothing (RFC 8259, section 2).
    found = re.search(r"^[ \t]+", text, re.MULTILINE)
    return found[0] if found else 2
