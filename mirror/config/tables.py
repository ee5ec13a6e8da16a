"""What the tables of settings have in common: the base class, and types of values that have units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from mirror.patterns import RepositoryPattern
from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.units import parse_cache_size, parse_duration, parse_rate, parse_workers

Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_cache_size)]
Rate = Annotated[int, BeforeValidator(parse_rate)]
Workers = Annotated[int, BeforeValidator(parse_workers)]


def _repository_patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        RepositoryPattern.parse(one)
    return value


RepositoryPatterns = Annotated[tuple[str, ...], AfterValidator(_repository_patterns)]


def readable(file: Path) -> bytes:
    """Returns a file's content. Raises ValueError if it cannot be read."""
    try:
        return read_file(file, LARGEST_SECRET, follow=True)
    except OSError as error:
        raise ValueError(f"the file {file} cannot be read: {error.strerror}") from None


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
