"""Turns ``[[scan]]`` tables into the scanners of mirror/scans."""

from __future__ import annotations

from mirror.config import Scan
from mirror.guards.rules import Pattern
from mirror.names import Reference, Repository, Tag
from mirror.scans.scanning import Scanner


def scanner_of(scan: Scan) -> Scanner:
    """Returns the scanner of a table."""
    patterns = tuple(map(Pattern.parse, scan.images))

    def fits(repository: Repository, reference: Reference) -> bool:
        tags = (reference.value,) if isinstance(reference, Tag) else ()
        return not patterns or any(pattern.fits(repository, tags) for pattern in patterns)

    return Scanner(scan.name, scan.command, scan.interval, scan.timeout, fits)
