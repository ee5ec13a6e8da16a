"""Settings of the repositories that live in this mirror, and can be pushed to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from mirror.config.tables import Duration, Size, Table

_PART = re.compile(r"[a-z0-9._*?-]+")
_IMMUTABLE = re.compile(r"[^:\s]+(:[^:\s/]+)?")


class Keep(Table):
    repositories: str = Field(
        "**",
        min_length=1,
        description="the repositories, such as `ci/**`; of several tables the first one that fits a tag counts",
    )
    tags: str = Field("*", min_length=1, description="the tags, such as `pr-*`")
    last: int | None = Field(None, ge=0, description="keep so many of them in each repository, those pushed last")
    age: Duration | None = Field(None, gt=0, description="keep those pushed within this time")

    @model_validator(mode="after")
    def _rule(self) -> Keep:
        if self.last is None and self.age is None:
            raise ValueError("last, age or both are expected: a tag is kept if one of them keeps it")
        return self


class Hosted(Table):
    repositories: tuple[str, ...] = Field(
        (),
        description="names that can be pushed to, such as `class/**`: they live here, and no registry is asked for them; `*` stands for text within a part of a name, `**` for any text",
    )
    max_size: Size | None = Field(
        None, description="how much may be pushed in all; default what the disk gives, less `cache.min_free`"
    )
    shadow: bool = Field(
        False,
        description="allow patterns that cover names of one part or `library/…`: what is pushed there is what everybody gets who pulls, say, `alpine`",
    )
    immutable: tuple[str, ...] = Field(
        (), description="tags that never change once pushed, as `REPOSITORY:TAG` patterns such as `team/**:v*`"
    )
    untagged: Duration = Field(30 * 86400.0, gt=0, description="how long a manifest is kept that no tag, index or subject names")
    grace: Duration = Field(
        86400.0, gt=0, description="how long a blob is kept that no manifest names, and an upload that nobody continues"
    )
    keep: tuple[Keep, ...] = Field(
        (),
        description="which tags are kept, each a table `[[hosted.keep]]`; tags that no table covers, and pinned ones, always are",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise ValueError("a list of tables is expected, each under [[hosted.keep]], with two brackets")
        return value

    @field_validator("repositories")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            parts = pattern.split("/")
            if not all(_PART.fullmatch(part) for part in parts):
                raise ValueError(
                    f"{pattern[:80]!r} is not a pattern of repository names: lower-case parts such as team/**, with * and **"
                )
            if len(parts) > 1 and "." in parts[0] and "*" not in parts[0]:
                raise ValueError(f"{pattern[:80]!r}: names that live here have no registry in them; write it without {parts[0]}/")
        return value

    @field_validator("immutable")
    @classmethod
    def _immutable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if not _IMMUTABLE.fullmatch(pattern):
                raise ValueError(f"{pattern[:80]!r} is not a pattern of tags: REPOSITORY:TAG, such as team/**:v*")
        return value

    @model_validator(mode="after")
    def _no_accident(self) -> Hosted:
        if not self.shadow and (taken := [pattern for pattern in self.repositories if shadows(pattern)]):
            raise ValueError(
                f"repositories: {taken[0]!r} covers names such as alpine or library/alpine, and would change what they mean for everybody who"
                " pulls them: write a pattern such as team/**, or set shadow = true if that is the purpose"
            )
        return self

    @property
    def shadowing(self) -> tuple[str, ...]:
        """The patterns that cover names of one part."""
        return tuple(pattern for pattern in self.repositories if shadows(pattern))


def shadows(pattern: str) -> bool:
    """Returns whether a pattern covers names of one part, which are below ``library/`` on Docker Hub, as clients may write them."""
    first, slash, rest = pattern.partition("/")
    if not slash:
        # "team*" covers nothing but names of one part, and "**" everything.
        return True
    return any(mark in first for mark in "*?") or (first == "library" and bool(rest))
