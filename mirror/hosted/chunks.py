"""Receives the body of an upload: in one piece, or in chunks that follow each other (distribution-spec 1.1, "Pushing a blob in chunks")."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from mirror.errors import ChunkOutOfOrder, UploadInvalid
from mirror.storage.hosted import Upload
from mirror.threads import ended

_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?")
"""``0-1023`` by the spec; with a unit as in RFC 9110, section 14.4, by some clients."""
_PIECE = 1024 * 1024
"""Bytes that are written at once, at least, but for the last ones."""
_LARGEST_PIECE = 4 * 1024 * 1024
"""Bytes that are held while others are written."""


def check_order(upload: Upload, content_range: str | None, length: int | None) -> None:
    """Returns if a chunk with this Content-Range begins where the upload ends. `length` is that of its body, None if it is not known.

    Raises ChunkOutOfOrder; UploadInvalid for a range that is none, or of another length than the body.
    """
    if content_range is None:
        return
    match = _RANGE.fullmatch(content_range.strip())
    if match is None:
        raise UploadInvalid(
            f"Content-Range has the first and the last byte of the chunk, such as 0-1023, not {content_range[:80]!r}"
        )
    start, last = int(match[1]), int(match[2])
    if start != upload.size:
        raise ChunkOutOfOrder(
            f"the chunk begins at {start}, and {upload.size} bytes are here: send what follows these", upload.size
        )
    if last < start or (length is not None and length != last - start + 1):
        raise UploadInvalid(f"Content-Range {content_range[:80]!r} is not what a body of {length} bytes can be")


async def receive(upload: Upload, read: Callable[[], Awaitable[bytes]]) -> None:
    """Appends a body to an upload: `read` returns the next bytes, none at the end. While bytes are written and hashed, the next ones are received.

    If the client leaves, most of what has come stays. Raises what `read` and `Upload.write` raise.
    """
    writing: asyncio.Task[None] | None = None
    pieces: list[bytes] = []
    size = 0
    try:
        while data := await read():
            pieces.append(data)
            size += len(data)
            if size >= _LARGEST_PIECE or (size >= _PIECE and (writing is None or writing.done())):
                if writing is not None:
                    await writing
                writing = asyncio.create_task(upload.write(pieces))
                pieces, size = [], 0
        if writing is not None:
            await writing
        if pieces:
            await upload.write(pieces)
    finally:
        # Nobody may close the upload before.
        if writing is not None:
            await ended(writing)
