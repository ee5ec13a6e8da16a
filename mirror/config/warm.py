"""Settings of lists of images that are pulled by a schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from mirror.config.registries import ALIASES, DEFAULT_REGISTRY
from mirror.config.tables import Duration, Table
from mirror.errors import Invalid
from mirror.manifests import platform_named, this_platform
from mirror.names import Reference, Repository, parse_image
from mirror.regular_files import read_file

_LARGEST = 4 * 1024 * 1024
"""Bytes of a file of image names."""
_EVERYTHING = "all"
_EVERY = 6 * 3600.0


class Warm(Table):
    name: str = Field("", max_length=40, description="for logs, metrics and the dashboard; by default the list's number")
    images: tuple[str, ...] = Field((), description="names of images, such as `redis:7` or `ghcr.io/owner/app:1.0`")
    file: Path | None = Field(
        None,
        description="a file with more of them, one per line, with `#` comments, as `mirror pull -f` takes; read every minute",
    )
    platforms: tuple[str, ...] = Field(
        (), description="such as `linux/arm64`, or `all` for everything that an index lists; default this machine's"
    )
    every: Duration | None = Field(
        None, gt=0, description="how often the images are pulled, first at once; default `6h` unless `at` is set"
    )
    at: str | None = Field(None, description="when they are pulled each day, such as `02:00`, in the machine's own time zone")

    @field_validator("images")
    @classmethod
    def _images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            _parse(name)
        return value

    @field_validator("file")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("platforms")
    @classmethod
    def _platforms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if _EVERYTHING in value:
            if len(value) > 1:
                raise ValueError(f"{_EVERYTHING!r} stands alone")
            return value
        return tuple(platform_named(platform) for platform in value)

    @field_validator("at")
    @classmethod
    def _at(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value) is None:
            raise ValueError('a time of day such as "02:00" or "14:30" is expected')
        return value

    @model_validator(mode="after")
    def _whole(self) -> Warm:
        if self.every is not None and self.at is not None:
            raise ValueError("every and at exclude each other")
        if not self.images and self.file is None:
            raise ValueError("images or a file of them are expected")
        return self

    @property
    def interval(self) -> float | None:
        """Seconds between two pulls; None if they are at a time of day."""
        return None if self.at is not None else _EVERY if self.every is None else self.every

    @property
    def wanted(self) -> Sequence[str] | None:
        """The platforms to pull; None for all."""
        return None if self.platforms == (_EVERYTHING,) else self.platforms or (this_platform(),)

    def read(self) -> list[tuple[Repository, Reference]]:
        """Returns the images of the list, those of its file too. Blocks. Raises ValueError if the file cannot be used."""
        names = list(self.images)
        if self.file is not None:
            try:
                # Editors on Windows begin a file with a byte order mark.
                names += names_in_list(read_file(self.file, _LARGEST, follow=True).decode("utf-8-sig"))
            except OSError as error:
                raise ValueError(f"{self.file} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{self.file} cannot be read: it is not UTF-8") from None
            except ValueError as error:
                raise ValueError(f"{self.file}, {error}") from None
        return list(dict.fromkeys(_parse(name) for name in names))


def names_in_list(text: str) -> list[str]:
    """Returns the image names in a list: one per line, with ``#`` comments. Raises ValueError with the line's number if one is wrong."""
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        name = re.sub(r"(^|\s)#.*", "", line).strip()
        if name:
            try:
                _parse(name)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            names.append(name)
    return names


def _parse(name: str) -> tuple[Repository, Reference]:
    try:
        return parse_image(name, DEFAULT_REGISTRY, ALIASES)
    except Invalid as error:
        raise ValueError(error.message) from None
