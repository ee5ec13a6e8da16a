"""Patterns of repository names: ``class/**`` has all names below ``class``, ``*`` stands for any text within one part of a name.

Without a registry, a pattern is of the names that clients write without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mirror.names import Repository, looks_like_registry

_EVERYTHING = "**"
_PART = re.compile(r"\*\*|[a-z0-9._:*?\[\]-]+")
_TOKEN = re.compile(r"\*\*|\*|\?|[^*?]+")
_MEANING = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern; `text` is as it was written."""

    text: str
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compiled = "".join(_MEANING.get(token) or re.escape(token) for token in _TOKEN.findall(self.text))
        object.__setattr__(self, "_compiled", re.compile(compiled))

    def fits(self, name: str) -> bool:
        """Returns whether the whole of a name is of this pattern."""
        return self._compiled.fullmatch(name) is not None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class RepositoryPattern:
    """A pattern of repositories of all registries. One whose first part is no registry's name is of docker.io; ``**`` alone is every repository there is."""

    text: str
    _names: Pattern = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, default: str = "docker.io") -> RepositoryPattern:
        """Takes ``[REGISTRY/]PATH``; `default` is the registry that is meant without one. Raises ValueError."""
        parts = text.strip().split("/")
        for part in parts:
            if _PART.fullmatch(part) is None or (_EVERYTHING in part and part != _EVERYTHING):
                raise ValueError(
                    f"{text!r} is not a pattern of repository names: such as class/**, library/alpine or ghcr.io/owner/*, in lower case, where ** is a part by itself"
                )
        if parts[0] != _EVERYTHING and not (len(parts) > 1 and looks_like_registry(parts[0])):
            if default == "docker.io" and len(parts) == 1:
                # Docker's own images, as Docker names them.
                parts = ["library", *parts]
            parts = [default, *parts]
        return cls(text.strip(), Pattern("/".join(parts)))

    def matches(self, repository: Repository) -> bool:
        return self._names.fits(str(repository))

    @property
    def is_everything(self) -> bool:
        """True if it matches every repository of every registry."""
        return self.text == _EVERYTHING

    def __str__(self) -> str:
        return self.text
