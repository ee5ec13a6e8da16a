"""A reader of a cached blob. If the disk fails meanwhile, it fetches the rest from upstream, and the file is verified again in the background."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mirror.downloads.direct import stream
from mirror.downloads.download import Download, Source
from mirror.names import Digest
from mirror.storage.slices import Part, Reader, SliceUnreadable
from mirror.storage.store import Store

log = logging.getLogger(__name__)


class CachedReader:
    """A store's reader, with upstream behind it."""

    def __init__(self, reader: Reader, digest: Digest, store: Store, source: Callable[[], Source]) -> None:
        """`source` returns the blob's upstream, and is called only if it is needed."""
        self.size = reader.size
        self._reader = reader
        self._digest = digest
        self._store = store
        self._source = source

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        async with aclosing(self._reader.parts(start, stop)) as parts:
            try:
                async for part in parts:
                    yield part
                return
            except SliceUnreadable as error:
                position = error.position
                log.error("%s cannot be read from byte %d on (%s): upstream is asked for the rest", self._digest, position, error)
        self._store.verify_behind(self._digest)
        # Beginning in the middle it cannot be verified here: the client verifies the whole.
        hasher = self._digest.hasher() if position == 0 else None
        download = Download(self._source(), position, stop, self.size)
        async with aclosing(stream(self._digest, download, stop, hasher)) as rest:
            async for part in rest:
                yield part

    async def aclose(self) -> None:
        await self._reader.aclose()
