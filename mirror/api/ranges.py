"""Range and the conditions on it (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

from mirror.errors import RangeNotSatisfiable

_RANGE = re.compile(r"\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open range of bytes that a Range header asks for; None where the whole is to be sent.

    Other units are ignored (section 14.2), and so is a list of ranges: no client of registries sends one. Raises RangeNotSatisfiable for
    one that is malformed or begins past the end.
    """
    if header is None:
        return None
    unit, equals, spec = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    if "," in spec:
        return None
    match = _RANGE.fullmatch(spec)
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        if start < size and (not last or int(first) <= int(last)):
            return start, stop
    elif last and int(last) > 0 and size > 0:
        return max(size - int(last), 0), size
    raise RangeNotSatisfiable(
        f"the range {header[:80]!r} is malformed or not within the blob's {size} bytes; the forms are bytes=a-b, bytes=a- and bytes=-n",
        size,
    )


def matches(header: str | None, etag: str) -> bool:
    """True where an If-None-Match header names `etag` (weak comparison, section 13.1.2): then 304 is the answer."""
    if header is None:
        return False
    return any(tag.strip() in ("*", etag, f"W/{etag}") for tag in header.split(","))


def range_applies(if_range: str | None, etag: str) -> bool:
    """False where an If-Range header (section 13.1.5) voids the Range. Content never changes, so no date is ever too old."""
    return if_range is None or not if_range.strip().startswith(('"', "W/")) or if_range.strip() == etag
