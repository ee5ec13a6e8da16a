"""Ahead of the client: when the first blob of an image is asked for and missing, the others start coming in.

Of what image it is, the manifests tell that clients have pulled lately: so never for platforms that nobody asked for. Clients come first: only a few blobs are
fetched ahead at a time, with one connection each, and only within the bounds on spare connections; a client that asks for one of them joins its flight.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from mirror.cache.content import Content
from mirror.manifests import children_of
from mirror.names import Digest, Repository
from mirror.tasks import Once

log = logging.getLogger(__name__)

_SIDE_BY_SIDE = 4
_LATELY = 300.0
"""Seconds for which a pulled manifest says that its layers will be asked for."""


class Ahead:
    """What is fetched before it is asked for."""

    def __init__(self, content: Content, fetch: Callable[[Repository, Digest], Awaitable[None]]) -> None:
        """`fetch` gets one blob into the cache; it does not raise when that fails."""
        self._content = content
        self._fetch = fetch
        self._turns = asyncio.Semaphore(_SIDE_BY_SIDE)
        self._images: Once[None] = Once()

    def begin(self, repository: Repository, blob: Digest) -> None:
        """A client has asked for a blob that was missing: the others of its image are fetched behind its back."""
        self._images.start(("blob", blob), lambda: self._find(repository, blob))

    async def aclose(self) -> None:
        """Gives up what has not begun."""
        await self._images.aclose()

    async def _find(self, repository: Repository, blob: Digest) -> None:
        for manifest in await self._content.naming(blob, time.time() - _LATELY):
            self._images.start(("image", manifest), lambda manifest=manifest: self._image(repository, manifest))  # type: ignore[misc]

    async def _image(self, repository: Repository, digest: Digest) -> None:
        manifest = await self._content.manifest(digest)
        if manifest is None:
            return
        async with asyncio.TaskGroup() as group:
            for blob in dict.fromkeys(children_of(manifest.body)[1]):
                await self._turns.acquire()
                if self._content.store.size(blob) is not None:
                    self._turns.release()
                    continue
                group.create_task(self._blob(repository, blob))

    async def _blob(self, repository: Repository, blob: Digest) -> None:
        try:
            await self._fetch(repository, blob)
        finally:
            self._turns.release()
