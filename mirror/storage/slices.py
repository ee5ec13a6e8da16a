"""What a reader of a blob gets: pieces in order, each a slice of an open file or bytes. Never a path."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FileSlice:
    """`length` bytes from `offset` of the open file `fd`: for sendfile(2), so that they need not pass through this process."""

    fd: int
    offset: int
    length: int
    check: Callable[[], None] | None = None
    """Raises MirrorError once no more of it may be sent. Who sends it to a client calls this before every few MiB."""


Part = FileSlice | bytes


class SliceUnreadable(OSError):
    """The disk does not give the bytes of a slice from `position` of its file on. Thrown into the generator that gave the slice, it may bring other parts."""

    def __init__(self, why: str, position: int) -> None:
        super().__init__(why)
        self.position = position


class Reader(Protocol):
    """One client's view of one blob. Whoever holds it closes it."""

    @property
    def size(self) -> int | None:
        """Bytes of the whole blob; None where not even upstream knows before its end."""
        ...

    def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        """The bytes ``[start, stop)``, as they become available. Raises MirrorError if they end early, so that a part is not taken for the whole."""
        ...

    async def aclose(self) -> None: ...
