"""A flight: one download of one blob, however many read it.

It belongs to the process, not to the request that began it: readers come and go, each at its own offset in the spool file, waiting only for the bytes
to be there. A slow one costs nothing and holds up nobody; one that leaves ends nothing.

The last bytes of the blob are withheld from everybody until its digest is verified, so that nobody ever holds a complete wrong blob.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mirror import metrics
from mirror.cache.bell import Bell
from mirror.cache.blobs import BlobStore
from mirror.cache.disk import Disk
from mirror.cache.download import Download, Fetch
from mirror.cache.spool import Spool
from mirror.cache.verifier import Verifier
from mirror.errors import DigestMismatch, MirrorError, StorageFull, UpstreamInvalid, UpstreamUnreachable
from mirror.names import Digest

log = logging.getLogger(__name__)

WITHHELD = 64 * 1024
"""Bytes at a blob's end that wait for its verification."""
FAR = 8 * 1024 * 1024
"""Bytes ahead of the download from which on a reader's range is fetched out of order."""
_MOST_DETOURS = 4
_WRITE = 1024 * 1024
"""Bytes that are written at once, where so many are there."""
_UNSIZED_STEP = 64 * 1024 * 1024
_FOLLOW_INTERVAL = 0.02
_MOST_DISCARDS = 3
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a flight needs to know of the world: how to fetch, how to make room, whom to tell."""

    origin: str
    """The registry's name, for metrics."""
    fetch: Fetch
    make_room: Callable[[int], Awaitable[None]]
    """Makes room for so many bytes. Raises StorageFull."""
    landed: Callable[[Digest, int], Awaitable[None]]
    """Told of a finished blob and its size."""


class _Claim:
    """A stretch that one connection is fetching. `end` may move down while it does, where a detour takes over."""

    __slots__ = ("end", "position")

    def __init__(self, position: int, end: int | None) -> None:
        self.position = position
        self.end = end


class Flight:
    """One download in this process; in other processes that want the same blob, its followers."""

    def __init__(self, digest: Digest, store: BlobStore, ground: Ground, disk: Disk) -> None:
        self.digest = digest
        self.size: int | None = None
        self.error: MirrorError | None = None
        self._store = store
        self._ground = ground
        self._disk = disk
        self._departed = asyncio.Event()
        self._spool: Spool | None = None
        self._spools: list[Spool] = []
        self._verified = False
        self._flying = True
        self._readers = 0
        self._claims: list[_Claim] = []
        self._detours: set[asyncio.Task[None]] = set()
        self._aims: set[int] = set()
        self._ranges = True
        self._verifier: Verifier | None = None
        self._bell = Bell()
        self._discards = 0

    # ------------------------------------------------------------------ readers

    async def departed(self) -> None:
        """Waits until upstream has answered, so that status and length are known. Raises what it failed with."""
        await self._departed.wait()
        if self.error is not None and self._spool is None:
            raise self.error

    def enter(self) -> None:
        """Counts a reader in: the files stay open until it has left."""
        self._readers += 1
        metrics.readers.inc()

    def leave(self) -> None:
        """Counts a reader out."""
        self._readers -= 1
        metrics.readers.dec()
        self._close_spools()

    async def readable(self, position: int, stop: int | None) -> tuple[Spool, int]:
        """Waits until there are bytes at `position`: the file that has them, and where they end for now.

        Ends at `position` itself at the end of the blob. Raises MirrorError when no more will come.
        """
        while True:
            spool = self._spool
            if spool is not None:
                end = spool.have.covered_until(position) if not self._verified else self.size or 0
                if not self._verified:
                    end = min(end, (end if self.size is None else self.size) - WITHHELD)
                if end > position or (self._verified and position >= end):
                    return spool, end if stop is None else min(end, stop)
            if self.error is not None:
                raise self.error
            self._detour(position, stop)
            await self._bell.wait()

    def _progress(self) -> None:
        if self._verifier is not None:
            self._verifier.progress()
        self._bell.ring()

    # ------------------------------------------------------------------ the flight itself

    async def run(self) -> None:
        """Flies to the end. Never raises but CancelledError: how it ended is in `error`."""
        metrics.flights.inc()
        try:
            while not await self._attempt():
                pass
        except MirrorError as error:
            self.error = error
        except OSError as error:
            self.error = StorageFull(f"the cache's disk refuses: {error.strerror}")
        except asyncio.CancelledError:
            self.error = UpstreamUnreachable("the mirror is being stopped")
            raise
        except Exception:
            log.exception("flight of %s failed", self.digest)
            self.error = UpstreamInvalid("the download failed for a reason that the mirror's log tells")
        finally:
            metrics.flights.dec()
            self._flying = False
            self._departed.set()
            self._bell.ring_now()
            for spool in self._spools:
                if not spool.verified:
                    spool.release()
            self._close_spools()

    def _close_spools(self) -> None:
        if not self._flying and self._readers == 0:
            for spool in self._spools:
                spool.close()
            self._spools.clear()

    async def _attempt(self) -> bool:
        """Leads or follows one spool file to its end. False when that file turned out not to be the one: try again."""
        spool = Spool(self._store, self.digest)
        self._spools.append(spool)
        while not spool.lead():
            spool.follow()
            if spool.size is not None:
                self._show(spool)
            if not spool.current:
                break
            await asyncio.sleep(_FOLLOW_INTERVAL)
        if not spool.current:
            spool.follow()
            return self._ended_elsewhere(spool)
        if (size := self._store.size(self.digest)) is not None:
            # Finished by somebody between the miss and the lease.
            return self._adopt_finished(spool, size)
        return await self._lead(spool)

    def _ended_elsewhere(self, spool: Spool) -> bool:
        """The file has gone from its name. True when that was because it is finished; otherwise there is another to try."""
        if spool.verified:
            spool.share()
            self._verified = True
            self._show(spool)
            return True
        self._discards += 1
        if self._discards > _MOST_DISCARDS:
            raise UpstreamInvalid(f"the download of {self.digest} was given up by another process")
        return False

    def _adopt_finished(self, spool: Spool, size: int) -> bool:
        file = self._store.open(self.digest)
        if file is None:
            return False
        spool.discard()
        os.dup2(file.fd, spool.fd, inheritable=False)
        file.close()
        spool.size, spool.verified = size, True
        self._show(spool)
        self._verified = True
        return True

    def _show(self, spool: Spool) -> None:
        """Lets the readers at a spool file. Those that have read of an earlier one find out, see flights.FlightReader."""
        self._spool = spool
        self.size = spool.size
        self._departed.set()
        self._progress()

    async def _lead(self, spool: Spool) -> bool:
        try:
            await self._fill(spool)
        except UpstreamInvalid as error:
            if isinstance(error, DigestMismatch):
                metrics.verification_failures.labels(self._ground.origin).inc()
            # Wrong bytes are not kept. Those of an earlier life may be the wrong ones (a power cut): then once more from nothing.
            inherited = spool.inherited
            spool.discard()
            if inherited:
                return False
            raise
        except (StorageFull, OSError):
            spool.discard()
            raise
        except BaseException:
            if not spool.have.total:
                spool.discard()
            raise
        self._verified = True
        self._show(spool)
        self._bell.ring_now()
        try:
            await self._disk.run(spool.publish)
        except OSError as error:
            # The readers have what they came for; only the cache has not.
            log.warning("cannot keep %s: %s", self.digest, error)
            spool.discard()
        else:
            await self._ground.landed(self.digest, spool.size or 0)
        return True

    async def _fill(self, spool: Spool) -> None:
        self._verifier = verifier = Verifier(spool, self.digest, self._disk)
        verifying = asyncio.create_task(verifier.matches())
        try:
            while not self._complete(spool):
                gap = self._unclaimed(spool)
                if gap is not None:
                    await self._fetch(spool, *gap)
                else:
                    await asyncio.wait(self._detours, return_when=asyncio.FIRST_COMPLETED)
            verified = await verifying
        finally:
            for task in (verifying, *self._detours):
                task.cancel()
            await asyncio.gather(verifying, *self._detours, return_exceptions=True)
        if not verified:
            raise DigestMismatch(f"upstream's bytes for {self.digest} are not what their digest says")

    @staticmethod
    def _complete(spool: Spool) -> bool:
        return spool.size is not None and spool.have.covered_until(0) >= spool.size

    def _unclaimed(self, spool: Spool) -> tuple[int, int | None] | None:
        position = 0
        while (gap := spool.have.next_gap(position, spool.size)) is not None:
            start, end = gap
            inside = [c for c in self._claims if (end is None or c.position < end) and (c.end is None or c.end > start)]
            if not inside:
                return start, end
            first = min(inside, key=lambda claim: claim.position)
            if first.position > start:
                return start, first.position
            if first.end is None:
                return None
            position = first.end
        return None

    async def _fetch(self, spool: Spool, start: int, end: int | None) -> None:
        whole = start == 0 and (end is None or end == spool.size)
        download = Download(self._ground.fetch, start, None if whole else end, spool.size)
        claim = _Claim(start, end)
        self._claims.append(claim)
        try:
            if self._spool is not spool:
                # The first answer: its failure is the client's to hear at once, with a status.
                await download.open()
                await self._set_size(spool, claim, download.size)
                self._show(spool)
            await self._transfer(spool, download, claim)
            if spool.size is None:
                await self._set_size(spool, claim, download.size)
        finally:
            self._claims.remove(claim)
            await download.aclose()

    async def _transfer(self, spool: Spool, download: Download, claim: _Claim) -> None:
        allowed = 0
        while claim.end is None or claim.position < claim.end:
            pieces = [await download.read()]
            size = len(pieces[0])
            while size < _WRITE and download.ready and (piece := await download.read()):
                pieces.append(piece)
                size += len(piece)
            if claim.end is not None and claim.position + size > claim.end:
                size = claim.end - claim.position
                pieces = [b"".join(pieces)[:size]]
            if not size:
                return
            if spool.size is None and claim.position >= allowed:
                allowed = claim.position + _UNSIZED_STEP
                await self._ground.make_room(allowed)
            await self._write(spool, claim.position, pieces, size)
            claim.position += size
            self._progress()

    async def _set_size(self, spool: Spool, claim: _Claim, size: int | None) -> None:
        if size is None:
            return
        if spool.size is None:
            await self._ground.make_room(size)
            spool.set_size(size)
            self.size = size
        if claim.end is None:
            claim.end = size
        self._progress()

    async def _write(self, spool: Spool, offset: int, pieces: list[bytes], size: int) -> None:
        assert self._verifier is not None
        try:
            await self._verifier.write(offset, pieces)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            await self._ground.make_room(size)
            await self._verifier.write(offset, pieces)
        spool.note(offset, offset + size)

    # ------------------------------------------------------------------ ranges far ahead

    def _detour(self, position: int, stop: int | None) -> None:
        """Fetches what a reader waits for out of order, where the download is not soon to come by."""
        spool = self._spool
        if spool is None or not self._ranges or spool.size is None or len(self._detours) >= _MOST_DETOURS:
            return
        owner = self._claim_of(position)
        if owner is None or position - owner.position < FAR or position in self._aims:
            return
        self._aims.add(position)
        task = asyncio.create_task(self._take_detour(spool, position, stop))
        self._detours.add(task)
        task.add_done_callback(self._detours.discard)

    def _claim_of(self, position: int) -> _Claim | None:
        return next((c for c in self._claims if c.position <= position and (c.end is None or position < c.end)), None)

    async def _take_detour(self, spool: Spool, start: int, stop: int | None) -> None:
        owner = self._claim_of(start)
        if owner is None or owner.end is None:
            self._aims.discard(start)
            return
        end = owner.end if stop is None else min(stop, owner.end)
        download = Download(self._ground.fetch, start, end, spool.size)
        claim = _Claim(start, end)
        try:
            await download.open()
            if not download.ranged:
                self._ranges = False
                return
            if self._claim_of(start) is not owner or owner.end < end:
                return
            owner.end = start
            self._claims.append(claim)
            try:
                await self._transfer(spool, download, claim)
            finally:
                self._claims.remove(claim)
        except (MirrorError, OSError) as error:
            # What it leaves undone is a gap like any other, and the main course fetches it.
            log.info("out-of-order fetch of %s at %d: %s", self.digest, start, error)
            self._ranges = False
        finally:
            self._aims.discard(start)
            await download.aclose()
