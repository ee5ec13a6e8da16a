"""Fetches a blob from the places that come before its registry, and from the registry what they do not give."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from mirror.backoff import doubled
from mirror.errors import MirrorError, UpstreamBusy, UpstreamUnreachable
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.upstream.blobs import Blob
from mirror.upstream.fleet import Fleet, first_answer, is_answer
from mirror.upstream.places import NotThere, Place, PlaceStream
from mirror.upstream.streams import BlobStream
from mirror.upstream.transport import Transport

if TYPE_CHECKING:
    from mirror.upstream.bucket import Bucket

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds after which a place that downloads the blob is asked whether it has all of it, first and at most."""
_SHARE = 4
"""Connections to a place that has all of the blob: its own clients read from it over as many as they are, and those of this mirror wait for what comes over these."""
_TRIES = 2
"""Streams of one place that may break before it is left."""


class PlacedBlob:
    """A blob that other mirrors, or a bucket, may have. The first place that lives is asked; one that fails is left for this blob. Implements `mirror.downloads.download.Source`."""

    def __init__(
        self,
        places: Sequence[Place | Bucket],
        blob: Blob,
        transport: Transport,
        repository: Repository,
        digest: Digest,
        fleet: Fleet,
    ) -> None:
        """`blob` is the registry's."""
        self._places = places
        self._blob = blob
        self._transport = transport
        self._repository = repository
        self._digest = digest
        self._fleet = fleet
        self._is_fetched = False
        self._left: set[Place | Bucket] = set()
        self._givers: set[Place | Bucket] = set()
        self._breaks: Counter[Place | Bucket] = Counter()
        self._open = 0
        """Streams of places that are open, or being opened."""
        self._is_hit = False
        """True if a place has said that it has all of the blob."""
        self._asking_for_hit = False

    # The registry's own limits, where they are for the registry only, do not slow down what other mirrors send.

    @property
    def connections(self) -> int:
        return self._blob.connections

    @property
    def ranges(self) -> bool:
        return self._blob.ranges or bool(self._usable())

    @property
    def single(self) -> bool:
        return not self._is_hit and bool(self._usable())

    @property
    def least(self) -> int:
        return min(_SHARE, self.connections) if self._is_hit and self._usable() else 1

    @property
    def throttled(self) -> bool:
        return self._blob.throttled

    @property
    def capped(self) -> bool:
        return self._blob.capped

    def attend(self, wanted: bool) -> None:
        self._blob.attend(wanted)

    async def describe(self) -> Descriptor:
        found = await first_answer(self._usable(), lambda place: place.head_blob(self._repository, self._digest))
        return found or await self._blob.describe()

    async def open(
        self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None
    ) -> PlaceStream | BlobStream:
        """Opens ``[start, stop)``. Raises as `Blob.open` does."""
        while places := self._usable():
            place = places[0]
            if spare and not self._transport.allows_spare(place.delivery):
                raise UpstreamBusy(f"{place.name}: as many connections as allowed are open")
            try:
                return await self._open_at(place, start, stop)
            except MirrorError as error:
                if is_answer(error):
                    raise
                if spare and self._open:
                    # The stream that is open says whether the place is left.
                    raise UpstreamBusy(error.message) from None
                self._leave(place, error)
        await self._note_fetched()
        return await self._blob.open(start, stop, spare=spare, avoid=avoid)

    def reject(self) -> bool:
        if not self._givers:
            return self._blob.reject()
        # Nobody knows whose bytes were wrong: the registry's are tried next.
        for place in self._givers:
            place.note_wrong(self._digest)
        self._left |= self._givers
        self._givers.clear()
        self._is_hit = False
        return True

    async def _note_fetched(self) -> None:
        if not self._is_fetched:
            self._is_fetched = True
            await self._fleet.note_fetched(self._repository, self._digest)

    def _usable(self) -> list[Place | Bucket]:
        return [place for place in self._places if place not in self._left and place.alive]

    async def _open_at(self, place: Place | Bucket, start: int, stop: int | None) -> PlaceStream:
        with contextlib.ExitStack() as stack:
            if place.is_peer:
                stack.enter_context(self._fleet.asking_peer(self._digest))
            self._open += 1
            stack.callback(self._closed)

            def ended(error: MirrorError | None) -> None:
                held.close()
                if error is not None:
                    self._broke(place, error)

            if not place.is_peer and place is not self._fleet.bucket:
                await self._note_fetched()
            stream = await place.open(self._repository, self._digest, start, stop, self._blob.share, ended)
            held = stack.pop_all()
        self._givers.add(place)
        if stream.is_hit:
            self._is_hit = True
        elif not self._asking_for_hit:
            self._asking_for_hit = True
            self._blob.unfinished.start(self._until_hit(place))
        return stream

    async def _until_hit(self, place: Place | Bucket) -> None:
        """Asks a place from time to time whether it has all of the blob, which others may get over more connections then."""
        try:
            for number in count():
                await asyncio.sleep(doubled(_FIRST_PAUSE, number, _LONGEST_PAUSE))
                if not self._open or self._is_hit or place in self._left:
                    return
                if await place.has_all(self._repository, self._digest):
                    self._is_hit = place not in self._left
                    return
        finally:
            self._asking_for_hit = False

    def _closed(self) -> None:
        self._open -= 1

    def _broke(self, place: Place | Bucket, error: MirrorError) -> None:
        self._breaks[place] += 1
        if self._breaks[place] >= _TRIES or isinstance(error, UpstreamUnreachable):
            self._leave(place, error)

    def _leave(self, place: Place | Bucket, error: MirrorError) -> None:
        if place not in self._left:
            level = logging.DEBUG if isinstance(error, NotThere) else logging.INFO
            log.log(level, "%s is asked of another one than %s: %s", self._digest, place.name, error)
        self._left.add(place)
        self._is_hit = False
