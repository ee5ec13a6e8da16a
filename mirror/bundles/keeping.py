"""Keeps the files of an archive in a store, each when its digest is verified."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.bundles.archive import ArchiveInvalid, Member, Members, printable
from mirror.errors import StorageFull
from mirror.names import Digest
from mirror.storage.partial import Partial
from mirror.storage.slices import FileSlice
from mirror.storage.store import Store
from mirror.threads import ThreadPool

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
_INTERVAL = 0.1
"""Seconds between two checks whether another import has kept a blob."""


class Keeper:
    """Writes files into a store."""

    def __init__(self, store: Store, threads: ThreadPool) -> None:
        """The archive is read in `threads`."""
        self._store = store
        self._threads = threads
        self._waited = False

    async def keep(self, content: MemberBytes, member: Member, digest: Digest | None) -> tuple[Digest, bool]:
        """Keeps the content of a file. Returns its digest, and False if it was cached already. `digest` is the expected one, None if it is not known.

        Waits for a blob that another import is writing, in this or another process, so that it is written once.

        Raises ArchiveInvalid for content of another digest, or another size than what is cached; StorageFull; OSError.
        """
        try:
            if digest is not None:
                return digest, await self._keep(content.read, member, digest)
            return await self._keep_unnamed(content, member)
        except StorageFull as error:
            raise StorageFull(
                f"{printable(member.name)} does not fit into the cache: {error.message}; set a larger cache.max_size, or make room"
            ) from None

    async def check(self, content: MemberBytes, member: Member, digest: Digest) -> None:
        """Returns if a file that is cached already has the content that its name says: whoever has the bytes may have them. Raises ArchiveInvalid, OSError."""
        hasher, buffer = digest.hasher(), memoryview(bytearray(min(_CHUNK, max(member.size, 1))))
        while await self._threads.run(content.read, buffer, hasher):
            pass
        if hasher.hexdigest() != digest.hex:
            raise ArchiveInvalid(
                f"{member.name} is not what its name says: its digest is {digest.algorithm}:{hasher.hexdigest()}"
            )

    async def _keep_unnamed(self, content: MemberBytes, member: Member) -> tuple[Digest, bool]:
        """Writes a file under a random name first, until its digest is known."""
        random = Digest.of(os.urandom(32))
        with closing(self._store.partial(random)) as spool:
            if not spool.lead():
                raise AssertionError
            try:
                hasher = hashlib.sha256()
                await self._copy(content.read, spool, member.size, hasher)
                digest = Digest("sha256", hasher.hexdigest())
                return digest, await self._keep(_Spooled(spool, member.size).read, member, digest)
            finally:
                spool.discard()

    async def _keep(self, read: Callable[[memoryview, _Hash], int], member: Member, digest: Digest) -> bool:
        while True:
            if self.is_cached(digest, member):
                return False
            # The size in the file's name distinguishes it from a download of the same blob by a running mirror.
            with closing(self._store.partial(digest, member.size)) as partial:
                if not await self._lead(partial, member):
                    continue
                kept = False
                try:
                    if self.is_cached(digest, member):
                        return False
                    partial.restart()
                    hasher = digest.hasher()
                    await self._copy(read, partial, member.size, hasher)
                    if hasher.hexdigest() != digest.hex:
                        raise ArchiveInvalid(
                            f"{member.name} is not what its name says: its digest is {digest.algorithm}:{hasher.hexdigest()}"
                        )
                    await partial.commit()
                    kept = True
                finally:
                    if not kept:
                        partial.discard()
                return True

    def is_cached(self, digest: Digest, member: Member) -> bool:
        """Raises ArchiveInvalid if what is cached under the file's digest has another size."""
        cached = self._store.size(digest)
        if cached is not None and cached != member.size:
            raise ArchiveInvalid(f"{member.name} has {member.size} bytes; {digest} has {cached}")
        return cached is not None

    async def _lead(self, partial: Partial, member: Member) -> bool:
        """Waits until no other import writes the blob. Returns False if that one has ended, whether it kept the blob or not."""
        while partial.current and not partial.lead():
            if not self._waited:
                self._waited = True
                log.warning("%s is being imported by another: waiting for that", printable(member.name))
            await asyncio.sleep(_INTERVAL)
        return partial.current

    async def _copy(self, read: Callable[[memoryview, _Hash], int], partial: Partial, size: int, hasher: _Hash) -> None:
        """Copies a file into the store. Each piece is read and hashed while the previous one is written."""
        await partial.set_size(size)
        buffers = [memoryview(bytearray(min(_CHUNK, max(size, 1)))) for _ in range(2)]
        offset = turn = 0
        writing: asyncio.Task[None] | None = None
        try:
            while offset < size:
                count = await self._threads.run(read, buffers[turn], hasher)
                if count == 0:
                    break
                if writing is not None:
                    await writing
                writing = asyncio.create_task(partial.write(offset, buffers[turn][:count]))
                offset += count
                turn ^= 1
        finally:
            if writing is not None:
                await writing


@dataclass
class MemberBytes:
    """The content of a file: the bytes that were read already, then the rest."""

    head: bytes
    members: Members | None

    def read(self, buffer: memoryview, hasher: _Hash) -> int:
        """Fills the buffer, except at the end of the file."""
        count = min(len(self.head), len(buffer))
        buffer[:count] = self.head[:count]
        self.head = self.head[count:]
        if self.members is not None:
            while count < len(buffer) and (got := self.members.readinto(buffer[count:])):
                count += got
        hasher.update(buffer[:count])
        return count


@dataclass
class _Spooled:
    """What was kept under a random name."""

    spool: Partial
    size: int
    offset: int = 0

    def read(self, buffer: memoryview, hasher: _Hash) -> int:
        part = self.spool.slice(self.offset, min(self.offset + len(buffer), self.size))
        if isinstance(part, FileSlice):
            count = os.preadv(part.fd, [buffer[: part.length]], part.offset)
        else:
            count = len(part)
            buffer[:count] = part
        self.offset += count
        hasher.update(buffer[:count])
        return count
