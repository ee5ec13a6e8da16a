"""What commands print: tables, ages, times."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

_UNITS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400 * 7, "week"), (86400, "day"), (3600, "hour"), (60, "minute"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Columns as wide as they must be; those named in `right` are aligned there."""
    wide = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width) for name, cell, width in zip(header, row, wide, strict=True)
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def ago(when: float | None) -> str:
    """How long ago that was; `when` in seconds since the epoch."""
    if when is None:
        return "never"
    seconds = max(0.0, time.time() - when)
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds / length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def moment(when: float | None) -> str | None:
    """For programs: RFC 3339, in UTC."""
    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")


def os_error_text(error: OSError) -> str:
    """What an OSError means to a person, with its file: neither a number nor Python's form."""
    text = {errno.EEXIST: "a file is where a folder is needed", errno.ENOTDIR: "a file is where a folder is needed"}.get(
        error.errno or 0, os.strerror(error.errno) if error.errno else str(error)
    )
    return f"{error.filename}: {text}" if error.filename else text


def tell_json(value: Any) -> None:
    """Prints a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
