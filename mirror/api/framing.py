"""Where requests begin and end in what a client sends (RFC 9112, section 6), as far as counting them needs it; aiohttp parses them."""

from __future__ import annotations

import re

LONGEST_HEAD = 64 * 1024
"""Bytes of a request line and all of its header fields."""
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r", re.IGNORECASE)
_UNCLEAR = re.compile(rb"\A(?:CONNECT )|\n(?:transfer-encoding|[ \t])", re.IGNORECASE)
"""What makes the end of a request hard to find: a transfer coding, a field that is folded over lines (section 5.2), a tunnel."""


class HeadTooLong(Exception):
    """A head has more than `LONGEST_HEAD` bytes."""


class Framing:
    """Follows the requests of one connection."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._body_left = 0
        self.endless = False
        """Where the current request ends is not followed, nor what comes after it."""

    @property
    def at_boundary(self) -> bool:
        """The next byte begins a request."""
        return not self._head and not self._body_left and not self.endless

    @property
    def pending(self) -> int:
        """Bytes of a head that has not come to its end."""
        return len(self._head)

    def feed(self, data: bytes) -> list[int]:
        """Takes what was received; returns the sizes of the heads that end in it. Raises HeadTooLong."""
        sizes: list[int] = []
        position = 0
        while position < len(data) and not self.endless:
            if self._body_left:
                skipped = min(self._body_left, len(data) - position)
                self._body_left -= skipped
                position += skipped
                continue
            if not self._head and data[position] in b"\r\n":
                # Empty lines before a request are allowed (section 2.2).
                position += 1
                continue
            searched = max(len(self._head) - len(_END) + 1, 0)
            before = len(self._head)
            self._head += data[position : position + LONGEST_HEAD + 1]
            end = self._head.find(_END, searched)
            size = end + len(_END) if end >= 0 else len(self._head)
            if size > LONGEST_HEAD:
                raise HeadTooLong
            if end < 0:
                return sizes
            head = bytes(self._head[:size])
            self._head.clear()
            position += size - before
            sizes.append(size)
            lengths = _LENGTH.findall(head)
            self.endless = (
                _UNCLEAR.search(head) is not None or head.lower().count(b"\ncontent-length") != len(lengths) or len(lengths) > 1
            )
            self._body_left = 0 if self.endless or not lengths else int(lengths[0])
        return sizes
