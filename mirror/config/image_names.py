"""Image names as people write them in settings and files."""

from __future__ import annotations

import re

from mirror.config.registries import ALIASES, DEFAULT_REGISTRY
from mirror.errors import Invalid
from mirror.names import Reference, Repository, parse_image


def parse_name(name: str) -> tuple[Repository, Reference]:
    """Parses an image name. Raises ValueError."""
    try:
        return parse_image(name, DEFAULT_REGISTRY, ALIASES)
    except Invalid as error:
        raise ValueError(error.message) from None


def names_in_list(text: str) -> list[str]:
    """Returns the image names in a list: one per line, with ``#`` comments. Raises ValueError with the line's number if one is wrong."""
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        name = re.sub(r"(^|\s)#.*", "", line).strip()
        if name:
            try:
                parse_name(name)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            names.append(name)
    return names
