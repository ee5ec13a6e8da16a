"""The images that a Compose file names (compose-spec, "05-services.md", "12-interpolation.md")."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mirror.cli.ask import images_of
from mirror.cli.text import os_error_text
from mirror.cli.yaml_files import documents_of, read_text

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?:(?P<operator>:?[-?+])(?P<word>[^{}]*))?\}|(?P<wrong>))"
)
_LARGEST = 4 * 1024 * 1024
"""Characters of a Compose file."""


def images_in(file: Path) -> list[str]:
    """Returns the images of a Compose file's services, without those that are built from sources.

    Variables have the values of the environment and of ``.env`` beside the file. Raises click.UsageError with what is wrong where.
    """
    documents = documents_of("--compose", file, read_text("--compose", file, _LARGEST))
    if len(documents) > 1:
        raise click.UsageError(f"--compose {file}: one document is expected, and it has {len(documents)}")
    document = documents[0] if documents else None
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict):
        raise click.UsageError(f"--compose {file}: it has no services")
    values = {**_env_file(file.with_name(".env")), **os.environ}
    found = []
    for name, service in services.items():
        image = service.get("image") if isinstance(service, dict) else None
        if image is None or "build" in service:
            continue
        place = f"--compose {file}: services.{name}.image"
        resolved = _interpolated(str(image), values, place).strip()
        try:
            images_of([resolved])
        except click.UsageError as error:
            raise click.UsageError(f"{place}: {error.message}") from None
        found.append(resolved)
    return list(dict.fromkeys(found))


def _env_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        why = os_error_text(error) if isinstance(error, OSError) else "it is no text"
        raise click.UsageError(f"{path}: cannot be read: {why}") from None
    found = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else re.sub(r"\s+#.*", "", value)
    return found


def _interpolated(text: str, values: Mapping[str, Any], place: str) -> str:
    """Raises click.UsageError for a variable that is not set and has no default."""

    def value_of(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name = match["name"] or match["braced"]
        if not name:
            raise click.UsageError(f"{place}: {text!r} has a $ that begins no variable; $$ is a $")
        operator, word = match["operator"] or "", match["word"] or ""
        value = values.get(name)
        known = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("+"):
            return word if known else ""
        if known:
            return str(value)
        if operator.endswith("-"):
            return word
        raise click.UsageError(
            f"{place}: the variable {name} is not set{f': {word}' if word else ''}; set it, or write it into .env"
        )

    return _VARIABLE.sub(value_of, text)
