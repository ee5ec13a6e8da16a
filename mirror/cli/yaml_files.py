"""YAML files that name images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def read_text(option: str, file: Path, most: int) -> str:
    """Returns a file's text, of `most` characters at most. Raises click.UsageError, which names the option."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            text = opened.read(most + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{option} {file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > most:
        raise click.UsageError(f"{option} {file}: it has more than {most} characters")
    return text


def documents_of(option: str, file: Path, text: str, hint: str = "") -> list[Any]:
    """Returns the documents of a YAML file, as plain data. Raises click.UsageError, which names the option and ends with `hint`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # JSON is YAML, and YAML 1.2 has no values such as "no" or "1:30" with a surprising meaning.
        return list(YAML(typ="safe", pure=True).load_all(text))
    except (YAMLError, ValueError, RecursionError) as error:
        raise click.UsageError(f"{option} {file}: no YAML: {' '.join(str(error).split())[:300]}{hint}") from None
