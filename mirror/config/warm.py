"""Settings of lists of images that are pulled by a schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from mirror.config.compose import images_in
from mirror.config.image_names import names_in_list, parse_name
from mirror.config.kubernetes import images_in_manifests
from mirror.config.tables import Duration, Table
from mirror.config.yaml_files import YamlFiles, read_regular, read_text
from mirror.manifests import platform_named, this_platform
from mirror.names import Reference, Repository

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
    compose: Path | None = Field(
        None,
        description="a Compose file whose services' images are in the list too, as with `mirror pull --compose`; read every minute",
    )
    kubernetes: Path | None = Field(
        None,
        description="a file or folder of Kubernetes manifests whose containers' images are in the list too, as with `mirror pull --kubernetes`; read every minute",
    )
    referrers: bool = Field(
        False,
        description="also signatures, attestations, SBOMs and whatever else refers to the images, as with `mirror pull --referrers`",
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
            parse_name(name)
        return value

    @field_validator("file", "compose", "kubernetes")
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
        if not self.images and self.file is None and self.compose is None and self.kubernetes is None:
            raise ValueError("images are expected, or a file that names some: file, compose or kubernetes")
        return self

    @property
    def interval(self) -> float | None:
        """Seconds between two pulls; None if they are at a time of day."""
        return None if self.at is not None else _EVERY if self.every is None else self.every

    @property
    def wanted(self) -> Sequence[str] | None:
        """The platforms to pull; None for all."""
        return None if self.platforms == (_EVERYTHING,) else self.platforms or (this_platform(),)

    def read(self, files: YamlFiles | None = None) -> list[tuple[Repository, Reference]]:
        """Returns the images of the list, those of its files too. Blocks. Raises ValueError if a file cannot be used.

        `files` remembers what the YAML files of this list named, for the next call.
        """
        names = list(self.images)
        files = files or YamlFiles(read_regular)
        files.start_round()
        if self.file is not None:
            text = read_text(self.file, _LARGEST, files.read)
            try:
                named = names_in_list(text)
            except ValueError as error:
                raise ValueError(f"{self.file}, {error}") from None
            # An editor may have emptied a file for a moment, and its images are pinned.
            if not named:
                raise ValueError(f"{self.file} names no image: write one per line, or remove file from the list")
            names += named
        if self.compose is not None:
            named = images_in(self.compose, files)
            if not named:
                raise ValueError(
                    f"{self.compose} names no image, only services that are built: give one an image, or remove compose from the list"
                )
            names += named
        if self.kubernetes is not None:
            names += images_in_manifests(self.kubernetes, files)
        return list(dict.fromkeys(parse_name(name) for name in names))
