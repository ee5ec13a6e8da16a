"""Takes the images of an archive into a store.

A file is read once more before (a pipe is not): what is in it is known then, and what is cached already or belongs to no wanted image is passed over unread. Every
blob is kept as soon as its digest is verified, so an import that was interrupted goes on where it was. Names are set at the end, each only where everything that it
stands for is here.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mirror.bundles.archive import ArchiveInvalid, Member, Members, printable
from mirror.bundles.claims import Claim, Claims, Content, ParseName, digest_in, is_layer, tagged
from mirror.bundles.received import Received, Receiver, enter_referrers, required
from mirror.bundles.sources import Source
from mirror.errors import StorageFull
from mirror.names import Digest, Reference, Repository
from mirror.storage.partial import Partial
from mirror.storage.slices import FileSlice
from mirror.storage.store import Store
from mirror.threads import ThreadPool

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK = 1024 * 1024
_MOST_IGNORED = 256 * 1024 * 1024
"""Bytes of files that belong to no image."""
_MAGIC = 4
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to import. `platforms` such as ``linux/arm64``, None for all that the archive has; `name` is for images without one; `key` is a public key in PEM."""

    parse: ParseName
    platforms: Collection[str] | None = None
    name: tuple[Repository, Reference] | None = None
    name_has_tag: bool = False
    pin: bool = False
    dry_run: bool = False
    key: bytes | None = None


@dataclass
class Import:
    """One import, and how far it is. Sizes in bytes."""

    source: Source
    wishes: Wishes
    here: int = 0
    """Read so far, or passed over."""
    came: dict[Digest, int] = field(default_factory=dict)
    """What is cached now and was not before; in a dry run, what would be."""
    images: list[Received] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.source.size or 0

    def __str__(self) -> str:
        return str(self.source)


class Importer:
    """Imports into a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPool(1)
        """One: an archive is read by one thread at a time, in order."""

    def close(self) -> None:
        self._threads.close()

    async def run(self, this: Import) -> None:
        """Imports an archive. `this` says meanwhile how far that is, and in the end what came of it.

        Raises ArchiveInvalid, and StorageFull where the cache cannot hold it; SignatureWrong, KeyUnusable; OSError. Blobs that came before that stay.
        """
        claims = Claims()
        contents: dict[str, Content] = {}
        wanted: set[Digest] | None = None
        if this.source.rereadable:
            magics = await self._threads.run(_survey, this.source, claims, this.wishes.key)
            expected = claims.layer_digests(lambda name: magics.get(name, b""))
            contents = _promised(claims, expected, magics)
            wanted = await self._wanted(this, claims, contents, magics)
        if not this.wishes.dry_run:
            with this.source.open() as members:
                await self._read(this, members, claims, contents, wanted)
        receiver = Receiver(
            self._store,
            claims,
            lambda digest: self._store.size(digest) is not None or (this.wishes.dry_run and digest in this.came),
            lambda digest: this.came.get(digest, 0),
            this.wishes.platforms,
            pin=this.wishes.pin,
            dry_run=this.wishes.dry_run,
        )
        this.images = await receiver.receive(self._claims(this, claims, contents))
        if not this.wishes.dry_run:
            await enter_referrers(self._store, claims.referred(this.wishes.parse))

    def _claims(self, this: Import, claims: Claims, contents: Mapping[str, Content]) -> list[Claim]:
        found = claims.claims(this.wishes.parse, contents.get)
        given = this.wishes.name
        if given is not None:
            nameless = [claim for claim in found if not claim.names]
            named = [tagged(given, None if this.wishes.name_has_tag else claim.bare_tag) for claim in nameless]
            if len(set(named)) < len(named):
                raise ArchiveInvalid(f"the archive has {len(named)} images without a name: --as names only one of them")
            names = dict(zip(map(id, nameless), named, strict=True))
            found = [
                Claim((names[id(claim)],), claim.root, None, claim.rebuilt) if id(claim) in names else claim for claim in found
            ]
        return found

    async def _wanted(
        self, this: Import, claims: Claims, contents: Mapping[str, Content], magics: Mapping[str, bytes]
    ) -> set[Digest] | None:
        """The blobs that the wanted images need; None where only their bytes will tell."""
        if any(name not in contents for name in magics if is_layer(name)):
            return None
        found: set[Digest] = set()
        for claim in self._claims(this, claims, contents):
            found |= await required(claim, claims, this.wishes.platforms)
        if this.wishes.dry_run:
            for content in contents.values():
                if content.digest in found and self._store.size(content.digest) is None:
                    this.came[content.digest] = content.size
        return found

    async def _read(
        self, this: Import, members: Members, claims: Claims, contents: dict[str, Content], wanted: set[Digest] | None
    ) -> None:
        gather = not this.source.rereadable
        signed: Mapping[str, str] | None = None
        ignored = 0
        while (member := await self._threads.run(members.next)) is not None:
            if member.target is not None:
                if gather:
                    claims.add(member, None)
                continue
            digest = contents[member.name].digest if member.name in contents else digest_in(member.name)
            blob = member.name.startswith("blobs/")
            if gather and this.wishes.key is not None and signed is None and blob:
                signed = claims.check_signature(this.wishes.key)
            if signed is not None:
                claims.check_signed(member, signed)
            needed = (blob or is_layer(member.name)) and (wanted is None or digest in wanted)
            head = bytearray()
            data: bytes | None = None
            if gather or needed:
                head = await self._threads.run(_read_up_to, members, _MAGIC)
            if gather:
                if claims.wants(member, bytes(head)):
                    data = bytes(head + await self._threads.run(_read_up_to, members, member.size))
                    head = bytearray(data)
                claims.add(member, data)
            if needed:
                cached = self._store.size(digest) if digest is not None else None
                if digest is not None and cached is not None:
                    if cached != member.size:
                        raise ArchiveInvalid(f"{member.name} has {member.size} bytes; {digest} has {cached}")
                else:
                    digest = await self._take(this, _Bytes(bytes(head), members), member, digest)
                assert digest is not None
                contents[member.name] = Content(digest, member.size, bytes(head[:_MAGIC]))
            elif gather and data is None:
                ignored += member.size
                if ignored > _MOST_IGNORED:
                    raise ArchiveInvalid(f"{member.name}: more than {_MOST_IGNORED} bytes of the archive belong to no image")
            this.here += member.size
        if gather and this.wishes.key is not None and signed is None:
            claims.check_signature(this.wishes.key)
        for body in claims.docker_configs():
            config = Digest.of(body)
            if self._store.size(config) is None and (wanted is None or config in wanted):
                await self._take(this, _Bytes(body, None), Member(str(config), len(body)), config)

    async def _take(self, this: Import, content: _Bytes, member: Member, digest: Digest | None) -> Digest:
        """Keeps the content of a file. Without `digest`, it is kept under a name of chance until its own is known."""
        try:
            if digest is not None:
                await self._keep(content.read, member, digest)
            else:
                chance = Digest.of(os.urandom(32))
                with closing(self._store.partial(chance)) as spool:
                    if not spool.lead():
                        raise AssertionError
                    try:
                        hasher = hashlib.sha256()
                        await self._copy(content.read, spool, member.size, hasher)
                        digest = Digest("sha256", hasher.hexdigest())
                        if self._store.size(digest) is None:
                            await self._keep(_Spooled(spool, member.size).read, member, digest)
                        else:
                            return digest
                    finally:
                        spool.discard()
        except StorageFull as error:
            raise StorageFull(
                f"{printable(member.name)} does not fit into the cache: {error.message}; set a larger cache.max_size, or make room"
            ) from None
        this.came[digest] = member.size
        return digest

    async def _keep(self, read: Callable[[memoryview, _Hash], int], member: Member, digest: Digest) -> None:
        for _ in range(_TRIES):
            # Its own, beside a download of the same blob by a mirror that is running.
            with closing(self._store.partial(digest, member.size)) as partial:
                if not partial.lead():
                    raise ArchiveInvalid(f"{member.name} is being imported by another process: wait for that, then run it again")
                if not partial.current:
                    continue
                partial.restart()
                kept = False
                try:
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
                return
        raise ArchiveInvalid(f"{member.name} is being imported by another process: wait for that, then run it again")

    async def _copy(self, read: Callable[[memoryview, _Hash], int], partial: Partial, size: int, hasher: _Hash) -> None:
        """Copies a file into the store. A piece is read and hashed while the one before is written."""
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
class _Bytes:
    """The content of a file: what has been read of it, then the rest."""

    head: bytes
    members: Members | None

    def read(self, buffer: memoryview, hasher: _Hash) -> int:
        """Fills the buffer, but at the end of the file."""
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
    """What was kept under a name of chance."""

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


def _survey(source: Source, claims: Claims, key: bytes | None) -> dict[str, bytes]:
    """Reads what an archive says about itself. Returns the first bytes of every file. Blocks."""
    magics: dict[str, bytes] = {}
    ignored = 0
    with source.open() as members:
        while (member := members.next()) is not None:
            data = None
            if member.target is None:
                magics[member.name] = magic = bytes(_read_up_to(members, _MAGIC))
                if claims.wants(member, magic):
                    data = magic + bytes(_read_up_to(members, member.size))
                elif digest_in(member.name) is None and not is_layer(member.name):
                    ignored += member.size
            claims.add(member, data)
            if ignored > _MOST_IGNORED:
                raise ArchiveInvalid(f"{member.name}: more than {_MOST_IGNORED} bytes of the archive belong to no image")
    if key is not None:
        claims.check_signature(key)
    return magics


def _promised(claims: Claims, expected: Mapping[str, Digest], magics: Mapping[str, bytes]) -> dict[str, Content]:
    """What every file is to hold, by its name or by what the images say of it."""
    found = {}
    for name, size in claims.sizes.items():
        digest = expected.get(name) or (digest_in(name) if name.startswith("blobs/") or is_layer(name) else None)
        if digest is not None:
            found[name] = Content(digest, size, magics.get(name, b""))
    return found


def _read_up_to(members: Members, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        buffer = bytearray(min(count - len(data), _CHUNK))
        got = members.readinto(memoryview(buffer))
        if got == 0:
            break
        data += buffer[:got]
    return data
