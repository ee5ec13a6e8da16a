"""A flight: one download of one blob, shared by all its readers.

It belongs to the process, not to the request that began it. Each reader has its own offset in the spool file and waits only for the bytes there. A slow reader
uses no memory and delays nobody, and a reader that leaves does not end the flight. Readers may have asked different registries: see suppliers.py.

A reader of the whole blob gets the last bytes only after the digest is verified, so that no client ever holds a complete wrong blob. A part of the blob is
served as soon as its bytes are here: lazy pullers read a layer's last bytes first, and verify what they read themselves.
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
from mirror.downloads.following import Following
from mirror.downloads.notifier import Notifier
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

WITHHELD = 1024
"""Bytes at the end of a blob that are not sent before it is verified. Few, so that a client does not wait long for them at a low rate."""
_FOLLOW_INTERVAL = 0.02
_MOST_WANTED = 64
"""Stretches that readers in other processes wait for, at most: the newest."""
_MOST_DISCARDS = 3
"""Downloads that other processes may give up, one after the other, before this one downloads separately."""
PATIENCE = 25.0
"""Seconds that a reader waits for the first answer of its registry. containerd gives up after 30 s without headers."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a flight, in bytes. `size` is None until it is known; `leads` is False while another process downloads."""

    size: int | None
    have: int
    readers: int
    leads: bool


class Flight:
    """The download of one blob in this process. It leads, or follows the process that leads."""

    def __init__(
        self,
        digest: Digest,
        store: Store,
        context: DownloadContext,
        context_of: Callable[[Repository, Digest], DownloadContext],
        claimed: int | None = None,
    ) -> None:
        """`context_of` is for repositories that other processes name. `claimed` is the size in bytes that the registry of `context` claims, where the shared
        download of the blob has another one."""
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
        """Returns the supplier of a reader. A new one is asked for the blob now."""
        supplier, new = self.suppliers.join(context)
        if new and self._running:
            self._ask(supplier)
        return supplier

    @property
    def can_be_joined(self) -> bool:
        """False once it has failed, or its file belongs to the store: a file that the store no longer has may have been removed because it was damaged."""
        if self.error is not None:
            return False
        try:
            return not self.verified or (self._spool is not None and self._spool.current)
        except OSError:
            return False

    def _ask(self, supplier: Supplier) -> None:
        self._asking[supplier] = asyncio.create_task(supplier.ask())

    async def headers(self, supplier: Supplier) -> int | None:
        """Waits until the registry of a reader has answered, or the blob is verified. Returns the size; None if the registry does not state it.

        Raises the error of the registry or of the download; UpstreamTimeout after `PATIENCE`; SizeDisputed where the download has another size.
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
        self.check_size(supplier.size)
        return supplier.size

    def check_size(self, size: int | None) -> None:
        """Raises SizeDisputed where the download is known to be of another size in bytes."""
        if size is not None and self.size is not None and size != self.size:
            raise SizeDisputed(f"{size} bytes, where the download of {self.digest} is of {self.size}", size)

    def enter(self) -> None:
        """Counts a reader. The files stay open until it leaves."""
        self._readers += 1
        self.was_read = True
        metrics.readers.inc()

    def leave(self) -> None:
        """Counts a reader that has left."""
        self._readers -= 1
        metrics.readers.dec()
        self._close_spools()

    async def readable(self, position: int, stop: int | None, size: int | None, *, whole: bool) -> tuple[Partial, int]:
        """Waits for bytes at `position`. Returns the file that has them, and where they end so far: at `position` itself at the end of the blob.

        `size` is the one that the reader got; `whole` is True where it reads all of the blob. Raises MirrorError when no more bytes will come, SizeDisputed
        if the reader got another size.
        """
        while True:
            spool = self._spool
            self.check_size(size)
            if spool is not None:
                end = spool.have.covered_until(position) if not self.verified else self.size or 0
                if not self.verified and whole:
                    end = min(end, (end if self.size is None else self.size) - WITHHELD)
                if end > position or (self.verified and position >= end):
                    return spool, end if stop is None else min(end, stop)
            if self.error is not None:
                raise self.error
            # The bytes that come next need not be asked for.
            if spool is not None and position > spool.have.covered_until(0):
                if self._filling is not None:
                    self._filling.want(position, stop)
                elif spool is self._followed and stop is not None:
                    spool.want(position, stop)
            await self._notifier.wait()

    @property
    def progress(self) -> Progress:
        """The progress so far."""
        have = self.size if self.verified else self._spools[-1].have.total if self._spools else 0
        return Progress(self.size, have or 0, self._readers, self._filling is not None)

    # ------------------------------------------------------------------ the download

    async def run(self) -> None:
        """Downloads the blob. Raises nothing but CancelledError: a failure is in `error`."""
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
            log.exception("the download of %s failed", self.digest)
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
        """Leads or follows the download in one spool file. False where another file must be tried."""
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
            # Another process finished it after this one found it missing.
            self.verified = True
            self._show(spool)
            return True
        return await self._lead(spool)

    async def _until_led(self, spool: Partial) -> bool:
        """Follows the process that leads, until the download has ended or the lead is free and taken here. False where it is not worth waiting for."""
        first, time = self.suppliers.first, asyncio.get_running_loop().time
        following = Following(spool, first, time())
        while not spool.lead():
            spool.follow()
            self._exchange_as_follower(spool)
            held_up = self._readers > 0 and following.is_held_up(time(), self.suppliers.capped)
            if (held_up or following.must_ask(time())) and first not in self._asking and not first.promised:
                self._ask(first)
            if (held_up or following.disputed) and self._separate():
                log.info("%s is downloaded separately from what another process downloads", self.digest)
                return False
            if following.may_be_read:
                self._show(spool)
            if not spool.current:
                break
            await asyncio.sleep(_FOLLOW_INTERVAL)
        return True

    def _exchange_as_follower(self, spool: Partial) -> None:
        spool.attend(self._readers > 0)
        for repository, size, told in spool.take_sources():
            if (supplier := self.suppliers.get(repository)) is not None:
                supplier.hear(size, told)
        self._tell_sources(spool)

    def _tell_sources(self, spool: Partial) -> None:
        for supplier in self.suppliers:
            if supplier.promised and supplier.usable:
                spool.add_source(supplier.repository, supplier.size, told=supplier.told)

    def _separate(self) -> bool:
        """Changes from the shared download to a separate one of the size that the own registry claims. False where it has, or that size is not known."""
        first = self.suppliers.first
        if self.claimed is not None or not first.promised or first.size is None:
            return False
        self.claimed = first.size
        self.suppliers.claim(first.size)
        return True

    def _ended_elsewhere(self, spool: Partial) -> bool:
        """Handles the end of a download in another process. True where the blob is complete, False where another file must be tried.

        Raises UpstreamInvalid where that has been tried often enough.
        """
        if spool.verified:
            self.verified = True
            self._show(spool)
            return True
        self._discards += 1
        if self._discards > _MOST_DISCARDS and not self._separate():
            raise UpstreamInvalid(f"the download of {self.digest} was given up by another process")
        return False

    def _show(self, spool: Partial) -> None:
        """Gives a spool file to the readers. `flights.FlightReader` notices where it has read from an earlier one."""
        self._spool = spool
        self.size = spool.size
        self.suppliers.show()
        if self.verified:
            self.suppliers.end()
        self._notifier.ring()

    # ------------------------------------------------------------------ for filling.py

    @property
    def wanted(self) -> bool:
        """True where a client reads, in this or another process."""
        return self._readers > 0 or self._attended

    def exchange(self, spool: Partial) -> None:
        """Exchanges sources and readers with the processes that follow: their repositories become sources of this download."""
        self._attended = spool.attended
        self.was_read = self.was_read or self._attended
        for repository, size, told in spool.take_sources():
            # This process may not know the registry.
            with contextlib.suppress(MirrorError):
                supplier, _ = self.suppliers.join(self._context_of(repository, self.digest))
                supplier.hear(size, told)
        self._tell_sources(spool)
        self._wanted_elsewhere += spool.take_wanted()
        missing = [(start, stop) for start, stop in self._wanted_elsewhere if spool.have.covered_until(start) <= start < stop]
        self._wanted_elsewhere = missing[-_MOST_WANTED:]
        for start, stop in self._wanted_elsewhere:
            if self._filling is not None:
                self._filling.want(start, stop)

    def answered(self, spool: Partial) -> None:
        """Upstream has answered."""
        # Now, not at the next exchange: clients of other processes wait for their headers.
        self._tell_sources(spool)
        self._show(spool)

    def progressed(self) -> None:
        """There are new bytes."""
        self._notifier.ring()

    async def _lead(self, spool: Partial) -> bool:
        spool.announce(self._context.repository)
        self._filling = Filling(spool, self.digest, self._context, self.suppliers, self)
        # Only the process that leads counts: the others download nothing.
        metrics.flights.inc()
        try:
            if not await self._filling.run():
                raise DigestMismatch(f"upstream's bytes for {self.digest} are not what their digest says")
        except UpstreamInvalid as error:
            # Wrong bytes are not kept. Where some were there before (a power cut may have damaged them), the download begins anew.
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
        # Before anybody can find it in the cache, and before readers have all of it: between that and the commit there is as little time as there can be.
        for supplier in self.suppliers:
            if supplier.told:
                await self._store.note_holder(supplier.repository, [self.digest], told=True)
        self.verified = True
        self._show(spool)
        self._notifier.ring_now()
        try:
            await spool.commit()
        except StorageFull as error:
            # The readers have the whole blob, though it is not cached.
            log.warning("cannot keep %s: %s", self.digest, error, extra={"cause": str(error)})
        return True
