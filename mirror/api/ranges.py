"""Range requests and conditional requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
import secrets
from itertools import pairwise

from mirror.errors import RangeNotSatisfiable

_RANGE = re.compile(r"\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)
_MOST_RANGES = 2048
"""Ranges of one request; with more, Range is ignored. podman requests up to 1024 chunks of a zstd:chunked layer at once."""

Range = tuple[int, int]
"""A half-open range of bytes."""


def parse_ranges(header: str | None, size: int) -> list[Range] | None:
    """Returns the ranges that a Range header requests, in its order; None if the whole content is to be sent.

    A header with another unit (section 14.2) or more than `_MOST_RANGES` ranges is ignored. Ranges beyond the end are left out. Overlapping ranges are joined, so
    that no byte is sent twice. Raises RangeNotSatisfiable if a range is malformed, or all are beyond the end.
    """
    if header is None:
        return None
    unit, equals, list_ = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = list_.split(",")
    if len(specs) > _MOST_RANGES:
        return None
    found = [_parse(spec, size) for spec in specs if spec.strip() or len(specs) == 1]
    if ranges := _disjoint([one for one in found if one is not None]):
        return ranges
    raise _refused(header, size)


def _parse(spec: str, size: int) -> Range | None:
    """Parses one range; None if it is beyond the end. Raises RangeNotSatisfiable if it is malformed."""
    match = _RANGE.fullmatch(spec)
    first, last = match.groups() if match else ("", "")
    if first and (not last or int(first) <= int(last)):
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        return (start, stop) if start < size else None
    if not first and last:
        return (max(size - int(last), 0), size) if int(last) > 0 and size > 0 else None
    raise _refused(spec, size)


def _disjoint(ranges: list[Range]) -> list[Range]:
    """Returns `ranges` unchanged if none overlap; otherwise sorted, with overlapping ones joined."""
    ordered = sorted(ranges)
    if all(one[1] <= following[0] for one, following in pairwise(ordered)):
        return ranges
    joined = [ordered[0]]
    for start, stop in ordered[1:]:
        if start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return joined


def _refused(header: str, size: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(
        f"the range {header[:80]!r} is malformed or not within the blob's {size} bytes; the forms are bytes=a-b, bytes=a- and bytes=-n",
        size,
    )


class Multipart:
    """A multipart/byteranges body (section 14.6): each range follows its item of `preambles`, and `end` follows the last range."""

    def __init__(self, ranges: list[Range], size: int, content_type: str) -> None:
        self._boundary = secrets.token_hex(16)
        self.content_type = f"multipart/byteranges; boundary={self._boundary}"
        self.preambles = [
            f"\r\n--{self._boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {content_range(one, size)}\r\n\r\n".encode()
            for one in ranges
        ]
        self.end = f"\r\n--{self._boundary}--\r\n".encode()
        self.length = sum(map(len, self.preambles)) + sum(stop - start for start, stop in ranges) + len(self.end)


def content_range(one: Range, size: int) -> str:
    """Returns the value of Content-Range (section 14.4)."""
    return f"bytes {one[0]}-{one[1] - 1}/{size}"


def matches(header: str | None, etag: str) -> bool:
    """Returns whether an If-None-Match header names `etag` (weak comparison, section 13.1.2), so that the response is 304."""
    if header is None:
        return False
    return any(tag.strip() in ("*", etag, f"W/{etag}") for tag in header.split(","))


def range_applies(if_range: str | None, etag: str) -> bool:
    """Returns whether Range applies despite an If-Range header (section 13.1.5). Content never changes, so any date matches."""
    return if_range is None or not if_range.strip().startswith(('"', "W/")) or if_range.strip() == etag
