"""Whose word a download goes by: the repositories that were asked for the blob.

The bytes of a download are shared by all its readers; trust and fate are not. What a registry says of a blob (that it has it, how long it is, that it refuses)
is told to the readers who asked that registry for it, and to no others. A repository whose readers join a download that another one began is asked for the blob
at once, by HEAD: one request tells its readers everything they need, and costs next to nothing where the download is healthy. From then on it is one more source
of the same download, which is turned to when the others fail, disagree, or are slow.

So it is across processes too. Each notes beside the download which of its repositories have the blob (`Partial.add_source`), and whichever process leads takes
them all as sources. See flight.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from mirror.downloads.context import DownloadContext
from mirror.downloads.download import Source, Stream
from mirror.errors import DigestMismatch, MirrorError, UpstreamBusy, UpstreamError, UpstreamInvalid
from mirror.manifests import Descriptor
from mirror.names import Repository


class Supplier:
    """One repository of one registry, as a source of a download."""

    def __init__(self, context: DownloadContext) -> None:
        self.repository = context.repository
        self.source = context.source
        self.size: int | None = None
        """Bytes of the blob, as this registry claims."""
        self.error: MirrorError | None = None
        """What it answered instead of the blob, if it has answered nothing else."""
        self.answered = asyncio.Event()
        """Set once its readers can be told `size` or `error`, or no longer need either."""
        self.promised = False
        """True once it has said that it has the blob."""
        self.usable = True
        """False once its bytes were wrong, or where its size is not the download's."""
        self.failures = 0
        self.streams = 0
        """How many of its connections are open."""
        self.tried = float("-inf")
        """When it was last turned to because the others were slow, in the event loop's time."""

    def promise(self, size: int | None) -> None:
        self.promised, self.error, self.failures = True, None, 0
        self.size = self.size if size is None else size

    def hear(self, size: int | None) -> None:
        """Takes the word of another process: the repository has said that it has the blob, of so many bytes."""
        if not self.promised and self.usable:
            self.promise(size)
            self.answered.set()

    def fail(self, error: MirrorError) -> None:
        self.failures += 1
        if not self.promised:
            self.error = error
            self.answered.set()

    async def ask(self) -> None:
        """Asks whether it has the blob, and how long that is. Does not raise: the answer is in `size` and `error`."""
        try:
            self.promise((await self.source.describe()).size)
        except MirrorError as error:
            self.fail(error)
        self.answered.set()


class _SupplierStream:
    """A stream that is counted while it is open."""

    def __init__(self, stream: Stream, supplier: Supplier) -> None:
        self.size, self.start, self.endpoint = stream.size, stream.start, stream.endpoint
        self.read = stream.read
        self._stream = stream
        self._supplier: Supplier | None = supplier
        supplier.streams += 1

    async def aclose(self) -> None:
        if self._supplier is not None:
            self._supplier.streams -= 1
            self._supplier = None
        await self._stream.aclose()


class Suppliers:
    """All suppliers of one download, as one source of it."""

    def __init__(self, first: DownloadContext, claimed: int | None = None) -> None:
        """`claimed` is the size that the download goes by from the beginning, if any."""
        self.first = Supplier(first)
        self._claimed = claimed
        self._all: dict[Repository, Supplier] = {first.repository: self.first}
        self.size = claimed
        """Bytes of the blob that the download goes by; suppliers that claim another size are not used."""
        self.preferred: Supplier | None = None
        """One that was faster than the others."""
        self._shown = False
        self._givers: set[Supplier] = set()
        self._chosen: Supplier | None = None

    def join(self, context: DownloadContext) -> tuple[Supplier, bool]:
        """The supplier of a reader. True where it is a new one, which is still to be asked."""
        if (known := self._all.get(context.repository)) is not None:
            return known, False
        supplier = self._all[context.repository] = Supplier(context)
        return supplier, True

    def get(self, repository: Repository) -> Supplier | None:
        return self._all.get(repository)

    def show(self) -> None:
        """The download has begun: the readers of who has promised the blob may hear of it."""
        self._shown = True
        for supplier in self:
            if supplier.promised:
                supplier.answered.set()

    def end(self) -> None:
        """The download has ended: nobody need wait for an answer any more."""
        for supplier in self:
            supplier.answered.set()

    def claim(self, size: int) -> None:
        """The download goes by this size from now on, however often it begins again."""
        self.size = self._claimed = size

    def restart(self) -> None:
        """The download begins again from nothing."""
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
        """One that has promised the blob, as long as the download takes it to be, and was not turned to for so many seconds."""
        for supplier in self._usable() if len(self._all) > 1 else ():
            if supplier.promised and not supplier.streams and not supplier.failures and now - supplier.tried > seconds:
                return supplier
        return None

    def only(self, supplier: Supplier) -> Source:
        """A source that asks nobody but `supplier`."""
        return _Only(self, supplier)

    # ------------------------------------------------------------------ as a source

    @property
    def connections(self) -> int:
        return max((supplier.source.connections for supplier in self._usable()), default=1)

    @property
    def ranges(self) -> bool:
        return any(supplier.source.ranges for supplier in self._usable())

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        """Opens it at the preferred supplier, or in the order in which they came; those that failed come last. Where it cannot, at the next.

        Raises what upstream raises: rather what may pass than what will not.
        """
        found: MirrorError | None = None
        tried: set[Supplier] = set()
        while left := [supplier for supplier in self._usable() if supplier not in tried]:
            # Others may have joined while one was tried.
            supplier = min(left, key=lambda s: (s.failures > 0, s is not self.preferred, s.failures))
            tried.add(supplier)
            try:
                return await self.open_at(supplier, start, stop, spare=spare, avoid=avoid)
            except MirrorError as error:
                if found is None or (isinstance(error, UpstreamError) and not isinstance(found, UpstreamError)):
                    found = error
        raise found or UpstreamInvalid("no registry that was asked for the blob has it as its digest says")

    async def open_at(self, supplier: Supplier, start: int, stop: int | None, *, spare: bool, avoid: str | None) -> Stream:
        """Opens it at one supplier. Raises what upstream raises, and UpstreamInvalid where it claims another size than the download's."""
        try:
            stream = await supplier.source.open(start, stop, spare=spare, avoid=avoid)
        except UpstreamBusy as error:
            if not spare:
                supplier.fail(error)
            raise
        except MirrorError as error:
            supplier.fail(error)
            raise
        supplier.promise(stream.size)
        if self.size is not None and stream.size not in (None, self.size):
            await stream.aclose()
            supplier.usable = len(self._all) == 1
            supplier.answered.set()
            raise UpstreamInvalid(f"{supplier.repository.registry} says {stream.size} bytes of a blob of {self.size}")
        if self._shown:
            supplier.answered.set()
        self._givers.add(supplier)
        return _SupplierStream(stream, supplier)

    async def describe(self) -> Descriptor:
        return await self.first.source.describe()

    def reject(self) -> bool:
        givers, self._givers = self._givers, set()
        if len(givers) > 1:
            # Nobody knows whose bytes were wrong: from now on one supplier gives them all.
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
        """Those that may be asked for bytes: the first, and those that have promised the blob, as long as the download takes it to be."""
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


class _Only:
    """See `Suppliers.only`."""

    def __init__(self, suppliers: Suppliers, supplier: Supplier) -> None:
        self._suppliers = suppliers
        self._supplier = supplier

    @property
    def connections(self) -> int:
        return self._supplier.source.connections

    @property
    def ranges(self) -> bool:
        return self._supplier.source.ranges

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> Stream:
        return await self._suppliers.open_at(self._supplier, start, stop, spare=spare, avoid=avoid)

    async def describe(self) -> Descriptor:
        return await self._supplier.source.describe()

    def reject(self) -> bool:
        return self._suppliers.reject()
