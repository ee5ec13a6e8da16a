"""Patterns of repository names, such as ``class/**`` or ``ghcr.io/owner/*``.

``*`` stands for characters within one part of a name, ``?`` for one of them, ``**`` as a whole part for any number of parts, none included. A pattern whose first
part is no registry's name is one of the default registry's, as in the names that clients use; ``**`` alone is every repository of every registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mirror.names import Repository, looks_like_registry

EVERYTHING = "**"
_PART = re.compile(r"\*\*|[a-z0-9._:*?\[\]-]+")
_HUB = "docker.io"


@dataclass(frozen=True, slots=True)
class RepositoryPattern:
    """A pattern as it was written, and as it is compared."""

    text: str
    _expression: re.Pattern[str] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, default: str = _HUB) -> RepositoryPattern:
        """Takes ``[REGISTRY/]PATH``; `default` is the registry that is meant without one. Raises ValueError."""
        parts = text.strip().split("/")
        for part in parts:
            if _PART.fullmatch(part) is None or ("**" in part and part != "**"):
                raise ValueError(
                    f"{text!r} is not a pattern of repository names: such as class/**, library/alpine or ghcr.io/owner/*, in lower case, where ** is a part by itself"
                )
        if parts[0] != EVERYTHING and not (len(parts) > 1 and looks_like_registry(parts[0])):
            if default == _HUB and len(parts) == 1 and not set(parts[0]) & set("*?"):
                # Docker's own images, as Docker names them.
                parts = ["library", *parts]
            parts = [default, *parts]
        return cls(text.strip(), re.compile(_expression(parts)))

    def matches(self, repository: Repository) -> bool:
        return self._expression.fullmatch(str(repository)) is not None

    @property
    def is_everything(self) -> bool:
        """True if it matches every repository of every registry."""
        return self.text == EVERYTHING

    def __str__(self) -> str:
        return self.text


def _expression(parts: list[str]) -> str:
    expression = ""
    for number, part in enumerate(parts):
        if part == EVERYTHING:
            # With the slash before it, or after it where it comes first.
            expression += "(?:[^/]+/)*" if number == 0 and len(parts) > 1 else ".*" if number == 0 else "(?:/[^/]+)*"
        else:
            slash = "" if number == 0 or (number == 1 and parts[0] == EVERYTHING) else "/"
            expression += slash + "".join("[^/]*" if one == "*" else "[^/]" if one == "?" else re.escape(one) for one in part)
    return expression
