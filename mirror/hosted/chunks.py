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


def check_order(upload: Upload, content_range: str | None, length: int | None) -> int | None:
    """Returns how long a body with this Content-Range is, None if that is not known. `length` is what its Content-Length says.

    Raises ChunkOutOfOrder if the chunk does not begin where the upload ends, or has another length; UploadInvalid for a range that is none.
    """
    if content_range is None:
        return length
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
    if last < start:
        raise UploadInvalid(f"Content-Range {content_range[:80]!r} ends before it begins")
    if length is not None and length != last - start + 1:
        raise ChunkOutOfOrder(f"Content-Range {content_range[:80]!r} is not what a body of {length} bytes can be", upload.size)
    return last - start + 1


async def receive(upload: Upload, read: Callable[[], Awaitable[bytes]], length: int | None = None) -> None:
    """Appends a body to an upload: `read` returns the next bytes, none at the end. While bytes are written and hashed, the next ones are received.

    If the client leaves, most of what has come stays. Of a body that does not have the `length` which was announced, nothing does. Raises ChunkOutOfOrder then, and
    what `read` and `Upload.write` raise.
    """
    before = upload.size
    try:
        await _receive(upload, read, length)
    except ChunkOutOfOrder:
        await upload.rewind(before)
        raise


async def _receive(upload: Upload, read: Callable[[], Awaitable[bytes]], length: int | None) -> None:
    writing: asyncio.Task[None] | None = None
    pieces: list[bytes] = []
    before = upload.size
    size = received = 0
    try:
        while data := await read():
            pieces.append(data)
            size += len(data)
            received += len(data)
            if length is not None and received > length:
                raise _of_another_length(received, length, before)
            if size >= _LARGEST_PIECE or (size >= _PIECE and (writing is None or writing.done())):
                if writing is not None:
                    await writing
                writing = asyncio.create_task(upload.write(pieces))
                pieces, size = [], 0
        if length is not None and received < length:
            raise _of_another_length(received, length, before)
        if writing is not None:
            await writing
        if pieces:
            await upload.write(pieces)
    finally:
        # Nobody may close the upload before.
        if writing is not None:
            await ended(writing)


def _of_another_length(received: int, length: int, size: int) -> ChunkOutOfOrder:
    """The error for a body in pieces (RFC 9112, section 7.1), whose end nobody knows before it comes."""
    more = "more" if received > length else f"{received}"
    return ChunkOutOfOrder(f"the body has {more} bytes, and its Content-Range announces {length}: none of them count", size)
