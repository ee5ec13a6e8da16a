"""A flight: one download of one blob, however many read it.

It belongs to the process, not to the request that began it: readers come and go, each at its own offset in the spool file, waiting only for the bytes
to be there. A slow one costs nothing and holds up nobody; one that leaves ends nothing. Readers may have asked different registries: suppliers.py says what
they share.

Whoever reads the whole blob gets its last bytes only once its digest is verified, so that nobody ever holds a complete wrong blob. A range that is not the
whole is served as soon as its bytes are here: lazy pullers read a layer's last bytes first, and verify what they read themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from mirror import metrics
from mirror.downloads.context import DownloadContext
from mirror.downloads.filling import Filling
from mirror.downloads.notifier import Notifier
from mirror.downloads.planner import LEAST_PROGRESS, Window
from mirror.downloads.suppliers import Supplier, Suppliers
from mirror.errors import (
    DigestMismatch,
    MirrorError,
    SizeDisputed,
    StorageFull,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.names import Digest, Repository
from mirror.storage.partial import Partial
from mirror.storage.store import Store

log = logging.getLogger(__name__)

WITHHELD = 64 * 1024
"""Bytes at a blob's end that wait for its verification."""
_FOLLOW_INTERVAL = 0.02
_NAMED_WITHIN = 0.5
"""Seconds within which a process that has taken the lead says what it downloads from."""
_MOST_WANTED = 64
"""Readers in other processes whose bytes are fetched out of order."""
_MOST_DISCARDS = 3
"""Downloads given up by other processes, one after the other, from which on they are not waited for."""
HELD_AFTER = 20.0
"""Seconds in which another process must bring `LEAST_PROGRESS` bytes of another registry's download for it to be waited for."""
FROZEN_AFTER = 60.0
"""Seconds without a byte after which another process is not waited for, whatever it downloads from: it may be stopped."""
PATIENCE = 25.0
"""Seconds that a reader waits for its registry's first answer. containerd gives up after 30 s without headers."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a flight is, in bytes. `size` is None where upstream has not told it; `leads` is False while another process downloads."""

    size: int | None
    have: int
    readers: int
    leads: bool


class Flight:
    """One download in this process; in other processes that want the same blob, its followers."""

    def __init__(
        self,
        digest: Digest,
        store: Store,
        context: DownloadContext,
        context_of: Callable[[Repository, Digest], DownloadContext],
        claimed: int | None = None,
    ) -> None:
        """`context_of` is for repositories that other processes name. `claimed` is the size that `context`'s registry says, where another download goes by
        another one."""
        self.digest = digest
        self.claimed = claimed
        self.repository = context.repository
        self.size: int | None = None
        self.error: MirrorError | None = None
        self._store = store
        self._context = context
        self._context_of = context_of
        self.suppliers = Suppliers(context, claimed)
        self._asking: dict[Supplier, asyncio.Task[None]] = {}
        self._spool: Partial | None = None
        self._spools: list[Partial] = []
        self.verified = False
        """True once the whole blob is here and is what its digest says."""
        self._running = True
        self._readers = 0
        self._attended = False
        self._followed: Partial | None = None
        """What another process leads."""
        self._wanted_elsewhere: list[tuple[int, int]] = []
        """Bytes that readers in other processes wait for."""
        self.was_read = False
        """True once somebody has begun to read it."""
        self._filling: Filling | None = None
        self._notifier = Notifier()
        self._discards = 0

    # ------------------------------------------------------------------ readers

    def join(self, context: DownloadContext) -> Supplier:
        """The supplier whose word a reader goes by. One that is new to the download is asked now."""
        supplier, new = self.suppliers.join(context)
        if new and self._running:
            self._ask(supplier)
        return supplier

    def _ask(self, supplier: Supplier) -> None:
        self._asking[supplier] = asyncio.create_task(supplier.ask())

    async def headers(self, supplier: Supplier) -> int | None:
        """Waits until a registry has told its readers the size of the blob, or it is verified. The size; None where the registry does not say.

        Raises what the registry, or the download, failed with; SizeDisputed where the download is of another size.
        """
        if not self.verified and self.error is None:
            try:
                async with asyncio.timeout(PATIENCE):
                    await supplier.answered.wait()
            except TimeoutError:
                raise UpstreamTimeout(f"{supplier.repository.registry} has not answered for {PATIENCE:g} s") from None
        if self.verified:
            return self.size
        if supplier.error is not None:
            raise supplier.error
        if self.error is not None and (self._spool is None or supplier is not self.suppliers.first):
            raise self.error
        self._check_size(supplier.size)
        return supplier.size

    def _check_size(self, size: int | None) -> None:
        if size is not None and self.size is not None and size != self.size:
            raise SizeDisputed(f"{size} bytes, where the download of {self.digest} is of {self.size}", size)

    def enter(self) -> None:
        """Counts a reader in: the files stay open until it has left."""
        self._readers += 1
        self.was_read = True
        metrics.readers.inc()

    def leave(self) -> None:
        """Counts a reader out."""
        self._readers -= 1
        metrics.readers.dec()
        self._close_spools()

    async def readable(self, position: int, stop: int | None, size: int | None, *, whole: bool) -> tuple[Partial, int]:
        """Waits until there are bytes at `position`: the file that has them, and where they end for now.

        `size` is what the reader was told; `whole` is True where it reads all of the blob.
        Ends at `position` itself at the end of the blob. Raises MirrorError when no more will come, SizeDisputed where it was told another size.
        """
        while True:
            spool = self._spool
            self._check_size(size)
            if spool is not None:
                end = spool.have.covered_until(position) if not self.verified else self.size or 0
                if not self.verified and whole:
                    end = min(end, (end if self.size is None else self.size) - WITHHELD)
                if end > position or (self.verified and position >= end):
                    return spool, end if stop is None else min(end, stop)
            if self.error is not None:
                raise self.error
            if self._filling is not None:
                self._filling.want(position, stop)
            elif spool is not None and spool is self._followed and stop is not None and position > spool.have.covered_until(0):
                # The bytes that come next need not be asked for.
                spool.want(position, stop)
            await self._notifier.wait()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        have = self.size if self.verified else self._spools[-1].have.total if self._spools else 0
        return Progress(self.size, have or 0, self._readers, self._filling is not None)

    # ------------------------------------------------------------------ the flight itself

    async def run(self) -> None:
        """Flies to the end. Never raises but CancelledError: how it ended is in `error`."""
        try:
            while not await self._attempt():
                pass
        except MirrorError as error:
            self.error = error
        except OSError as error:
            self.error = StorageFull(f"the cache's disk refuses: {error.strerror}")
        except asyncio.CancelledError:
            self.error = self.error or UpstreamUnreachable("the mirror is being stopped")
            raise
        except Exception:
            log.exception("flight of %s failed", self.digest)
            self.error = UpstreamInvalid("the download failed for a reason that the mirror's log tells")
        finally:
            self._running = False
            for task in self._asking.values():
                task.cancel()
            self.suppliers.end()
            self._notifier.ring_now()
            for spool in self._spools:
                if not spool.verified:
                    spool.release()
            self._close_spools()

    def _close_spools(self) -> None:
        if not self._running and self._readers == 0:
            for spool in self._spools:
                spool.close()
            self._spools.clear()

    async def _attempt(self) -> bool:
        """Leads or follows one spool file to its end. False when that file turned out not to be the one: try again."""
        spool = self._store.partial(self.digest, self.claimed)
        self._spools.append(spool)
        self._followed = spool
        try:
            if not await self._until_led(spool):
                return False
        finally:
            self._followed = None
            spool.attend(False)
        if not spool.current:
            spool.follow()
            return self._ended_elsewhere(spool)
        if spool.finished():
            # By somebody else, between the miss and the lead.
            self.verified = True
            self._show(spool)
            return True
        return await self._lead(spool)

    async def _until_led(self, spool: Partial) -> bool:
        """Follows another process until it has ended the download, or dropped the lead, which is ours then. False where it must not be waited for."""
        first, time = self.suppliers.first, asyncio.get_running_loop().time
        began, slow, frozen = time(), Window(time(), spool.have.total), Window(time(), spool.have.total)
        while not spool.lead():
            spool.follow()
            self._exchange_as_follower(spool)
            named = spool.leader is not None or time() - began >= _NAMED_WITHIN
            if named and spool.leader != first.repository and not first.answered.is_set() and first not in self._asking:
                # The leader's registry may be another one: what it says is not for the readers here.
                self._ask(first)
            if spool.size is not None and (spool.leader == first.repository or first.answered.is_set()):
                if first.promised and first.size not in (None, spool.size) and self._separate():
                    return False
                self._show(spool)
            if not spool.current:
                break
            gained = slow.gained(time(), spool.have.total, HELD_AFTER)
            held = gained is not None and gained < LEAST_PROGRESS and spool.leader != first.repository
            held = frozen.gained(time(), spool.have.total, FROZEN_AFTER) == 0 or (held and spool.have.total != spool.size)
            if held and self._readers:
                if self._separate():
                    log.warning("another process does not get on with the download of %s: not waiting for it", self.digest)
                    return False
                if first not in self._asking:
                    self._ask(first)
            await asyncio.sleep(_FOLLOW_INTERVAL)
        return True

    def _exchange_as_follower(self, spool: Partial) -> None:
        spool.attend(self._readers > 0)
        for repository, size in spool.take_sources():
            if (supplier := self.suppliers.get(repository)) is not None:
                supplier.hear(size)
        self._tell_sources(spool)

    def _tell_sources(self, spool: Partial) -> None:
        for supplier in self.suppliers:
            if supplier.promised and supplier.usable:
                spool.add_source(supplier.repository, supplier.size)

    def _separate(self) -> bool:
        """Gives up the shared download for a separate one, of the size that this flight's own registry says. False where there is none to give up for."""
        first = self.suppliers.first
        if self.claimed is not None or not first.promised or first.size is None:
            return False
        self.claimed = first.size
        self.suppliers.claim(first.size)
        return True

    def _ended_elsewhere(self, spool: Partial) -> bool:
        """The file has gone from its name. True when that was because it is finished; otherwise there is another to try."""
        if spool.verified:
            self.verified = True
            self._show(spool)
            return True
        self._discards += 1
        if self._discards > _MOST_DISCARDS and not self._separate():
            raise UpstreamInvalid(f"the download of {self.digest} was given up by another process")
        return False

    def _show(self, spool: Partial) -> None:
        """Lets the readers at a spool file. Those that have read of an earlier one find out, see flights.FlightReader."""
        self._spool = spool
        self.size = spool.size
        self.suppliers.show()
        if self.verified:
            self.suppliers.end()
        self._notifier.ring()

    # ------------------------------------------------------------------ what its filling asks and tells

    @property
    def wanted(self) -> bool:
        """True where somebody reads, in whatever process."""
        return self._readers > 0 or self._attended

    def exchange(self, spool: Partial) -> None:
        """Takes the repositories of the processes that follow as sources, and their readers as readers of this one."""
        self._attended = spool.attended
        self.was_read = self.was_read or self._attended
        for repository, size in spool.take_sources():
            # The other process may know registries that this one does not.
            with contextlib.suppress(MirrorError):
                supplier, _ = self.suppliers.join(self._context_of(repository, self.digest))
                supplier.hear(size)
        self._tell_sources(spool)
        self._wanted_elsewhere += spool.take_wanted()
        missing = [(start, stop) for start, stop in self._wanted_elsewhere if spool.have.covered_until(start) <= start < stop]
        self._wanted_elsewhere = missing[-_MOST_WANTED:]
        for start, stop in self._wanted_elsewhere:
            if self._filling is not None:
                self._filling.want(start, stop)

    def answered(self, spool: Partial) -> None:
        """Upstream has answered."""
        self._show(spool)

    def progressed(self) -> None:
        """There are new bytes."""
        self._notifier.ring()

    async def _lead(self, spool: Partial) -> bool:
        spool.announce(self._context.repository)
        self._filling = Filling(spool, self.digest, self._context, self.suppliers, self)
        # Counted where it is led: who reads along downloads nothing.
        metrics.flights.inc()
        try:
            if not await self._filling.run():
                raise DigestMismatch(f"upstream's bytes for {self.digest} are not what their digest says")
        except UpstreamInvalid as error:
            # Wrong bytes are not kept. Those of an earlier life may be the wrong ones (a power cut): then once more from nothing.
            again = spool.inherited
            if isinstance(error, DigestMismatch):
                metrics.verification_failures.labels(self._context.repository.registry).inc()
                again = again or self.suppliers.reject()
            spool.discard()
            if again:
                self.suppliers.restart()
                return False
            raise
        except (StorageFull, OSError) as error:
            spool.discard()
            if isinstance(error, StorageFull) and spool.size is None and self.suppliers.disbelieve():
                # Only the claim was too large: another registry says otherwise.
                return False
            raise
        except BaseException:
            if not spool.have.total:
                spool.discard()
            raise
        finally:
            self._filling = None
            self._attended = False
            self._wanted_elsewhere.clear()
            metrics.flights.dec()
        self.verified = True
        self._show(spool)
        self._notifier.ring_now()
        try:
            await spool.commit()
        except StorageFull as error:
            # The readers have what they came for; only the cache has not.
            log.warning("cannot keep %s: %s", self.digest, error, extra={"cause": str(error)})
        return True
