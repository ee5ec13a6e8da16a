"""Formats what commands print: tables, ages, times, errors, JSON."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

_UNITS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400 * 7, "week"), (86400, "day"), (3600, "hour"), (60, "minute"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Formats rows as columns; those named in `right` are right-aligned."""
    wide = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width) for name, cell, width in zip(header, row, wide, strict=True)
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def ago(when: float | None) -> str:
    """Formats how long ago `when` was, in seconds since the epoch."""
    if when is None:
        return "never"
    seconds = max(0.0, time.time() - when)
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds / length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def os_error_text(error: OSError) -> str:
    """Describes an OSError and its file to a person, without the error number."""
    text = {errno.EEXIST: "a file is where a folder is needed", errno.ENOTDIR: "a file is where a folder is needed"}.get(
        error.errno or 0, os.strerror(error.errno) if error.errno else str(error)
    )
    return f"{error.filename}: {text}" if error.filename else text


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))
