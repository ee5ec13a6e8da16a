"""Suppliers: the repositories that readers of one download have asked for the blob.

All readers share the bytes of the download. What a registry says of the blob (that it has it, its size, a refusal) reaches only the readers that asked that
registry. When a reader of another repository joins a download, that repository is asked for the blob by HEAD at once: this one request gives its readers all
they need. From then on it is one more source of the download, used when the others fail, disagree or are slow.

The same holds across processes: each process notes beside the download which of its repositories have the blob (`Partial.add_source`), and the process that
leads takes them all as sources. See flight.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count

from mirror.downloads.context import DownloadContext
from mirror.downloads.download import Source, Stream
from mirror.errors import DigestMismatch, MirrorError, UpstreamBusy, UpstreamError, UpstreamInvalid
from mirror.manifests import Descriptor
from mirror.names import Repository

_failures = count(1)


class Supplier:
    """One repository of one registry, as a source of a download."""

    def __init__(self, context: DownloadContext) -> None:
        self.repository = context.repository
        self.source = context.source
        self._asks_mirror = context.asks_mirror
        self._told = False
        self.size: int | None = None
        """The size of the blob in bytes, as this registry claims."""
        self.error: MirrorError | None = None
        """Its error, unless it has ever said that it has the blob."""
        self.answered = asyncio.Event()
        """Set when `size` or `error` is known for its readers, or they need neither."""
        self.promised = False
        """True when it has said that it has the blob."""
        self.usable = True
        """False when its bytes were wrong, or it claims another size than the download's."""
        self.failed = 0
        """0 unless its last request failed; otherwise the place of that failure among all failures of this process."""
        self.streams = 0
        """The number of its connections that are open, or being opened."""
        self.tried = float("-inf")
        """The time at which it last failed, or was tried because the others were slow, in seconds of the event loop."""

    @property
    def told(self) -> bool:
        """True if the registry itself has said that the repository has the blob."""
        return self._told and self.promised and self.usable

    def promise(self, size: int | None) -> None:
        """Records what its source has said: that it has the blob, and its size in bytes."""
        self._told = self._told or not self._asks_mirror
        self._accept(size)

    def _accept(self, size: int | None) -> None:
        self.promised, self.error, self.failed = True, None, 0
        self.size = self.size if size is None else size

    def hear(self, size: int | None, told: bool) -> None:
        """Records what another process learnt: that the repository has the blob, and its size in bytes, as its registry has `told`, or else another mirror."""
        if not self.usable:
            return
        self._told = self._told or told
        if not self.promised:
            self._accept(size)
            self.answered.set()

    def note_failure(self) -> None:
        """Puts it behind the suppliers that have not failed, and behind those that failed before."""
        self.failed = next(_failures)
        self.tried = asyncio.get_running_loop().time()

    def fail(self, error: MirrorError) -> None:
        self.note_failure()
        if not self.promised:
            self.error = error
            self.answered.set()

    async def ask(self) -> None:
        """Asks whether it has the blob, and for its size. Does not raise: the answer is in `size` or `error`."""
        try:
            self.promise((await self.source.describe()).size)
        except MirrorError as error:
            self.fail(error)
        self.answered.set()


class _SupplierStream:
    """A stream that its supplier counts until it is closed; `Suppliers.open_at` counts it from its request on."""

    def __init__(self, stream: Stream, supplier: Supplier) -> None:
        self.size, self.start, self.endpoint = stream.size, stream.start, stream.endpoint
        self._stream = stream
        self._supplier: Supplier | None = supplier

    async def read(self, wanted: int) -> bytes | memoryview:
        try:
            return await self._stream.read(wanted)
        except UpstreamError:
            # The next connection is opened at another supplier, where there is one.
            if self._supplier is not None:
                self._supplier.note_failure()
            raise

    async def aclose(self) -> None:
        if self._supplier is not None:
            self._supplier.streams -= 1
            self._supplier = None
        await self._stream.aclose()


class Suppliers:
    """All suppliers of one download, as one `Source`."""

    def __init__(self, first: DownloadContext, claimed: int | None = None) -> None:
        """`claimed` is the size in bytes that the download has from the beginning, if any."""
        self.first = Supplier(first)
        self._claimed = claimed
        self._all: dict[Repository, Supplier] = {first.repository: self.first}
        self.size = claimed
        """The size of the download in bytes. Suppliers that claim another size are not used."""
        self.preferred: Supplier | None = None
        """A supplier that was faster than the others."""
        self._shown = False
        self._givers: set[Supplier] = set()
        self._chosen: Supplier | None = None

    def join(self, context: DownloadContext) -> tuple[Supplier, bool]:
        """Returns the supplier of a reader; True with a new one, which has to be asked."""
        if (known := self._all.get(context.repository)) is not None:
            return known, False
        supplier = self._all[context.repository] = Supplier(context)
        return supplier, True

    def get(self, repository: Repository) -> Supplier | None:
        return self._all.get(repository)

    def show(self) -> None:
        """Call this when the download has begun: the suppliers that have the blob may answer their readers."""
        self._shown = True
        for supplier in self:
            if supplier.promised:
                supplier.answered.set()

    def end(self) -> None:
        """Call this when the download has ended: no reader waits for an answer any more."""
        for supplier in self:
            supplier.answered.set()

    def claim(self, size: int) -> None:
        """Sets the size of the download in bytes, for all further attempts too."""
        self.size = self._claimed = size

    def restart(self) -> None:
        """Call this when the download begins anew."""
        self.size = self._claimed
        self._givers.clear()

    def disbelieve(self) -> bool:
        """Gives up the suppliers that claim the size of the download, which is too large, and begins anew. False where no other is left."""
        for supplier in self:
            if supplier.size == self.size:
                supplier.usable = False
                supplier.answered.set()
        self.restart()
        return any(True for _ in self._usable())

    def idle(self, now: float, seconds: float) -> Supplier | None:
        """Returns an unused supplier that has the blob in the size of the download and was not tried for so many seconds."""
        for supplier in self._usable() if len(self._all) > 1 else ():
            if supplier.promised and not supplier.streams and now - supplier.tried > seconds:
                return supplier
        return None

    def only(self, supplier: Supplier) -> Source:
        """Returns a source that asks only `supplier`."""
        return _Through(supplier.source, partial(self.open_at, supplier), self.reject)

    def unless(self, superseded: Callable[[], bool]) -> Source:
        """Returns a source that asks no further supplier once `superseded` returns True: somebody else is fetching the same bytes."""
        return _Through(self, partial(self.open_unless, superseded), self.reject)

    # ------------------------------------------------------------------ as a source

    @property
    def connections(self) -> int:
        return max((supplier.source.connections for supplier in self._usable()), default=1)

    @property
    def ranges(self) -> bool:
        return any(supplier.source.ranges for supplier in self._usable())

    @property
    def single(self) -> bool:
        return all(supplier.source.single for supplier in self._usable())

    @property
    def least(self) -> int:
        return max((supplier.source.least for supplier in self._usable()), default=1)

    @property
    def throttled(self) -> bool:
        return any(supplier.source.throttled for supplier in self)

    @property
    def capped(self) -> bool:
        return any(supplier.source.capped for supplier in self)

    def attend(self, wanted: bool) -> None:
        for supplier in self:
            supplier.source.attend(wanted)

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        """Opens the blob at the first supplier that gives it: the preferred one, then the others in the order of joining, then those that failed, the one whose
        failure is longest ago first.

        Raises what a supplier raised: an error that may pass (UpstreamError) rather than one that will not.
        """
        return await self.open_unless(lambda: False, start, stop, spare=spare, avoid=avoid)

    async def open_unless(
        self, superseded: Callable[[], bool], start: int, stop: int | None, *, spare: bool, avoid: str | None
    ) -> Stream:
        """As `open`, but asks no further supplier once `superseded` returns True."""
        found: MirrorError | None = None
        tried: set[Supplier] = set()
        while left := [supplier for supplier in self._usable() if supplier not in tried]:
            # Others may have joined while one was tried.
            supplier = min(left, key=lambda s: (s.failed, s is not self.preferred))
            tried.add(supplier)
            try:
                return await self.open_at(supplier, start, stop, spare=spare, avoid=avoid)
            except MirrorError as error:
                if found is None or (isinstance(error, UpstreamError) and not isinstance(found, UpstreamError)):
                    found = error
                if superseded():
                    break
        raise found or UpstreamInvalid("no registry that was asked for the blob has it as its digest says")

    async def open_at(self, supplier: Supplier, start: int, stop: int | None, *, spare: bool, avoid: str | None) -> Stream:
        """Opens the blob at one supplier. Raises what upstream raises, and UpstreamInvalid where the supplier claims another size than the download's."""
        supplier.streams += 1
        try:
            opened = await supplier.source.open(start, stop, spare=spare, avoid=avoid)
        except BaseException as error:
            supplier.streams -= 1
            if isinstance(error, MirrorError) and not (spare and isinstance(error, UpstreamBusy)):
                supplier.fail(error)
            raise
        stream = _SupplierStream(opened, supplier)
        supplier.promise(stream.size)
        if self.size is not None and stream.size not in (None, self.size):
            await stream.aclose()
            supplier.usable = len(self._all) == 1
            supplier.answered.set()
            raise UpstreamInvalid(f"{supplier.repository.registry} says {stream.size} bytes of a blob of {self.size}")
        if self._shown:
            supplier.answered.set()
        self._givers.add(supplier)
        return stream

    async def describe(self) -> Descriptor:
        return await self.first.source.describe()

    def reject(self) -> bool:
        givers, self._givers = self._givers, set()
        if len(givers) > 1:
            # It is not known whose bytes were wrong. The next attempt uses one supplier only.
            self._chosen = next(supplier for supplier in self if supplier in givers)
            return True
        for giver in givers:
            if giver.source.reject():
                return True
            giver.usable = False
            giver.promised = False
            giver.fail(DigestMismatch(f"{giver.repository.registry} has other bytes than the digest says"))
        self._chosen = None
        return any(True for _ in self._usable())

    def _usable(self) -> Iterator[Supplier]:
        """Yields the suppliers that may be asked for bytes: the first, and those that have the blob in the size of the download."""
        return (
            supplier
            for supplier in self
            if supplier.usable
            and self._chosen in (None, supplier)
            and (supplier is self.first or supplier.promised)
            and (self.size is None or supplier is self.first or supplier.size in (None, self.size))
        )

    def __iter__(self) -> Iterator[Supplier]:
        return iter(tuple(self._all.values()))


class _Through:
    """A source whose connections are opened, and whose bytes are rejected, through `Suppliers`."""

    def __init__(self, source: Source, open_: Callable[..., Awaitable[Stream]], reject: Callable[[], bool]) -> None:
        self._source = source
        self._open = open_
        self.reject = reject

    @property
    def connections(self) -> int:
        return self._source.connections

    @property
    def ranges(self) -> bool:
        return self._source.ranges

    @property
    def single(self) -> bool:
        return self._source.single

    @property
    def least(self) -> int:
        return self._source.least

    @property
    def throttled(self) -> bool:
        return self._source.throttled

    @property
    def capped(self) -> bool:
        return self._source.capped

    def attend(self, wanted: bool) -> None:
        self._source.attend(wanted)

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        return await self._open(start, stop, spare=spare, avoid=avoid)

    async def describe(self) -> Descriptor:
        return await self._source.describe()
