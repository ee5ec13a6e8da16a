"""The images that a Compose file names (compose-spec, "05-services.md", "12-interpolation.md")."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.config.image_names import parse_name
from mirror.config.yaml_files import Named, YamlFiles, read_text

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?:(?P<operator>:?[-?+])(?P<word>[^{}]*))?\}|(?P<wrong>))"
)
_LARGEST = 4 * 1024 * 1024
"""Bytes of a Compose file."""


def images_in(file: Path, files: YamlFiles | None = None) -> list[str]:
    """Returns the images of a Compose file's services, without those that are built from sources.

    Variables have the values of this process's environment and of ``.env`` beside the file. Blocks. Raises ValueError with what is wrong where.
    """
    files = files or YamlFiles()
    values = {**_env_file(file.with_name(".env"), files), **os.environ}
    found = []
    for where, image in files.named(file, _LARGEST, _images):
        place = f"{file}: {where}"
        resolved = _interpolated(image, values, place).strip()
        try:
            parse_name(resolved)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        found.append(resolved)
    return list(dict.fromkeys(found))


def _images(documents: list[Any]) -> Named:
    """Raises ValueError."""
    if len(documents) > 1:
        raise ValueError(f"one document is expected, and it has {len(documents)}")
    document = documents[0] if documents else None
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict):
        raise ValueError("it has no services")
    images = [
        (name, service["image"])
        for name, service in services.items()
        if isinstance(service, dict) and "image" in service and "build" not in service
    ]
    return tuple((f"services.{name}.image", str(image)) for name, image in images if image is not None)


def _env_file(path: Path, files: YamlFiles) -> dict[str, str]:
    """Raises ValueError."""
    try:
        if not path.exists():
            return {}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    lines = read_text(path, _LARGEST, files.read).splitlines()
    found = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else re.sub(r"\s+#.*", "", value)
    return found


def _interpolated(text: str, values: Mapping[str, Any], place: str) -> str:
    """Raises ValueError for a variable that is not set and has no default."""

    def value_of(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name = match["name"] or match["braced"]
        if not name:
            raise ValueError(f"{place}: {text!r} has a $ that begins no variable; $$ is a $")
        operator, word = match["operator"] or "", match["word"] or ""
        value = values.get(name)
        known = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("+"):
            return word if known else ""
        if known:
            return str(value)
        if operator.endswith("-"):
            return word
        raise ValueError(f"{place}: the variable {name} is not set{f': {word}' if word else ''}; set it, or write it into .env")

    return _VARIABLE.sub(value_of, text)
