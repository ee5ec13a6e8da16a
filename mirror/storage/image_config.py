"""Reads an image's configuration, for the inventory (OCI image-spec 1.1, "config.md"). Invalid fields are left out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_MOST = 200
"""Entries of a list that are kept."""
_LONGEST = 4000
"""Characters of a text that are kept."""
_SHELL = re.compile(r"^(?:\|\d+ (?:\S+=\S* )*)?/bin/sh -c (?:#\(nop\)\s*)?")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the image's history."""

    command: str
    created: float | None
    """Seconds since the epoch."""
    empty: bool
    """True if the step made no layer."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How containers of an image run, and how it was built."""

    created: float | None
    """Seconds since the epoch, as its author says."""
    author: str
    user: str
    working_dir: str
    stop_signal: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    ports: tuple[str, ...]
    volumes: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, str], ...]
    history: tuple[Step, ...]

    @property
    def layer_commands(self) -> tuple[str, ...]:
        """The command behind each layer, in the order of the layers."""
        return tuple(step.command for step in self.history if not step.empty)


def parse_config(body: bytes) -> ImageConfig | None:
    """Parses a configuration; None if it is not an image's."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("rootfs"), dict):
        return None
    run = document.get("config")
    run = run if isinstance(run, dict) else {}
    return ImageConfig(
        parse_moment(document.get("created")),
        _text(document.get("author")),
        _text(run.get("User")),
        _text(run.get("WorkingDir")),
        _text(run.get("StopSignal")),
        _texts(run.get("Entrypoint")),
        _texts(run.get("Cmd")),
        _names(run.get("ExposedPorts")),
        _names(run.get("Volumes")),
        tuple((name, value) for name, _, value in (entry.partition("=") for entry in _texts(run.get("Env")))),
        _pairs(run.get("Labels")),
        tuple(_step(entry) for entry in _entries(document.get("history")) if isinstance(entry, dict)),
    )


def _step(entry: dict[str, Any]) -> Step:
    command = _SHELL.sub("", _text(entry.get("created_by")) or _text(entry.get("comment"))).strip()
    return Step(command.removesuffix("# buildkit").rstrip(), parse_moment(entry.get("created")), entry.get("empty_layer") is True)


def parse_moment(value: Any) -> float | None:
    """Returns a date of RFC 3339 in seconds since the epoch; None for anything else, also for what is before the year 1 or after 9999 in UTC."""
    try:
        moment = datetime.fromisoformat(value)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        # Rounded, the last microseconds of 9999 are in the next year.
        datetime.fromtimestamp(seconds, UTC)
        return seconds
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _text(value: Any) -> str:
    return value[:_LONGEST] if isinstance(value, str) else ""


def _entries(value: Any) -> list[Any]:
    return value[:_MOST] if isinstance(value, list) else []


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(entry) for entry in _entries(value) if isinstance(entry, str))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(sorted(_text(name) for name in value)[:_MOST]) if isinstance(value, dict) else ()


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        return ()
    return tuple((_text(name), _text(text)) for name, text in sorted(value.items()) if isinstance(text, str))[:_MOST]
