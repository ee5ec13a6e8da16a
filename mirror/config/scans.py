"""Settings of scanners."""

from __future__ import annotations

from pydantic import Field, field_validator

from mirror.config.guards import check_patterns
from mirror.config.tables import Duration, Table

_PLACES = ("{archive}", "{layout}")


class Scan(Table):
    name: str = Field(
        "", max_length=40, pattern=r"^[ -~]*$", description="for pages, logs and metrics; by default the table's number"
    )
    command: tuple[str, ...] = Field(
        min_length=1,
        description="a program and its arguments, which prints SARIF or CycloneDX; `{archive}` stands for a tar with the image, `{layout}` for a folder, both OCI layouts; also `{digest}`, `{name}`",
    )
    images: tuple[str, ...] = Field((), description="patterns as those of a guard; default all images that were pulled or pushed")
    interval: Duration = Field(86400.0, gt=0, description="after how long an image is scanned again")
    timeout: Duration = Field(600.0, gt=0, description="how long a scan may take")

    @field_validator("command")
    @classmethod
    def _command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0] or any("\0" in word for word in value):
            raise ValueError("a program and its arguments are expected, each a string of its own")
        if not any(place in word for word in value[1:] for place in _PLACES):
            raise ValueError(f"an argument with {' or '.join(_PLACES)} is expected, for what the program looks at")
        return value

    @field_validator("images")
    @classmethod
    def _images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_patterns(value)
