"""Takes the images of an archive into a store.

A file is read twice, a pipe once. The first reading finds what is in the file, so that the second one skips what is cached already or belongs to no wanted image.
A blob is kept as soon as its digest is verified, so an interrupted import continues where it stopped. Names are set at the end, each only if everything that it
stands for is cached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from mirror.bundles.archive import ArchiveInvalid, Member, Members
from mirror.bundles.claims import Claim, Claims, Content, ParseName, digest_in, is_layer, tagged
from mirror.bundles.keeping import Keeper, MemberBytes
from mirror.bundles.parts import required, unwanted
from mirror.bundles.received import Received, Receiver
from mirror.bundles.sources import Source
from mirror.cache.guarding import Guard
from mirror.names import Digest
from mirror.storage.store import Store
from mirror.threads import ThreadPool

_CHUNK = 1024 * 1024
_MOST_IGNORED = 256 * 1024 * 1024
"""Bytes of files that belong to no image."""
_MAGIC = 4
_MOST_LOOKS = 100
"""Times at most that the blobs of other platforms are determined while a pipe is read; bundles need one."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """Options of an import. `platforms` are such as ``linux/arm64``, None for all that the archive has; `name` is for images without one; `key` is a public key in PEM."""

    parse: ParseName
    platforms: Collection[str] | None = None
    name: str | None = None
    pin: bool = False
    dry_run: bool = False
    key: bytes | None = None


@dataclass
class Import:
    """One import and its progress. Sizes in bytes."""

    source: Source
    wishes: Wishes
    here: int = 0
    """Bytes that were read or skipped so far."""
    came: dict[Digest, int] = field(default_factory=dict)
    """What was not cached before and is now; in a dry run, what would be."""
    carried: set[Digest] = field(default_factory=set)
    """What the archive has, by the bytes that were read: what it only names is opened to nobody."""
    images: list[Received] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.source.size or 0

    def __str__(self) -> str:
        return str(self.source)

    @property
    def size(self) -> int:
        """Bytes of `came`."""
        return sum(self.came.values())

    def document(self) -> dict[str, Any]:
        """Returns the result as JSON."""
        return {"images": [image.document() for image in self.images], "size": self.size}


class Importer:
    """Imports into a store."""

    def __init__(self, store: Store, guard: Guard | None = None, *, is_closed: bool = True) -> None:
        """`guard` decides which images are not taken in, or not served yet; None if there is nothing to decide by. `is_closed` is False if everybody may pull
        everything."""
        self._is_closed = is_closed
        self._store = store
        self._guard = guard
        self._threads = ThreadPool(1)
        """One: an archive is read by one thread at a time, in order."""
        self._keeper = Keeper(store, self._threads)

    def close(self) -> None:
        self._threads.close()

    async def run(self, this: Import) -> None:
        """Imports an archive, and updates `this` with its progress and its result.

        Raises ArchiveInvalid; StorageFull if the cache cannot hold it; Invalid for `name`; SignatureWrong, KeyUnusable; OSError. Blobs that were kept before
        an error stay.
        """
        claims = Claims()
        contents: dict[str, Content] = {}
        wanted: set[Digest] | None = None
        # A dry run reads an archive once, so that it works for a pipe too.
        if this.source.rereadable or this.wishes.dry_run:
            magics = await self._threads.run(_survey, this.source, claims, this.wishes.key)
            expected = claims.layer_digests(lambda name: magics.get(name, b""))
            contents = _promised(claims, expected, magics)
            wanted = await self._wanted(this, claims, contents, magics)
        if not this.wishes.dry_run:
            with ExitStack() as stack:
                # In the thread too, since it may wait for the first bytes.
                members = await self._threads.run(stack.enter_context, this.source.open())
                await self._read(this, members, claims, contents, wanted)
        receiver = Receiver(
            self._store,
            claims,
            lambda digest: self._store.size(digest) is not None or (this.wishes.dry_run and digest in this.came),
            lambda digest: this.came.get(digest, 0),
            lambda digest: digest in this.carried or digest in claims.documents,
            this.wishes.platforms,
            claims.seen(this.wishes.parse),
            pin=this.wishes.pin,
            dry_run=this.wishes.dry_run,
            guard=self._guard,
            is_closed=self._is_closed,
        )
        found, referred = self._claims(this, claims, contents), claims.referred(this.wishes.parse)
        this.images = await receiver.receive(found, referred)
        if not this.wishes.dry_run:
            await receiver.enter_referrers(referred)

    def _claims(self, this: Import, claims: Claims, contents: Mapping[str, Content]) -> list[Claim]:
        found = claims.claims(this.wishes.parse, contents.get)
        given = this.wishes.name
        if given is not None:
            nameless = [claim for claim in found if not claim.names]
            has_tag = ":" in given.rpartition("/")[2] or "@" in given
            named = [tagged(this.wishes.parse(given), None if has_tag else claim.bare_tag) for claim in nameless]
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
        """Returns the blobs that the wanted images need; None if that is not known before their bytes are read."""
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
        passed_over: set[Digest] = set()
        known = looks = ignored = 0
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
            if gather and needed and data is None and this.wishes.platforms is not None:
                if known != len(claims.documents) and looks < _MOST_LOOKS:
                    known, looks = len(claims.documents), looks + 1
                    passed_over = await self._unwanted(this, claims, this.wishes.platforms)
                needed = digest not in passed_over
            if needed:
                digest = await self._keep(this, MemberBytes(bytes(head), members), member, digest)
                contents[member.name] = Content(digest, member.size, bytes(head[:_MAGIC]))
            elif gather and data is None and digest not in passed_over:
                ignored += member.size
                if ignored > _MOST_IGNORED:
                    raise ArchiveInvalid(f"{member.name}: more than {_MOST_IGNORED} bytes of the archive belong to no image")
            this.here += member.size
        if gather and this.wishes.key is not None and signed is None:
            claims.check_signature(this.wishes.key)
        for body in claims.docker_configs():
            config = Digest.of(body)
            if self._store.size(config) is None and (wanted is None or config in wanted):
                await self._keep(this, MemberBytes(body, None), Member(str(config), len(body)), config)

    async def _unwanted(self, this: Import, claims: Claims, platforms: Collection[str]) -> set[Digest]:
        """Returns the blobs of a pipe that belong to other platforms, as far as that is known yet."""
        try:
            found = claims.claims(this.wishes.parse, lambda _: None)
        except ArchiveInvalid:
            # The archive's description comes later, or never.
            return set()
        return await unwanted(found, claims, platforms)

    async def _keep(self, this: Import, content: MemberBytes, member: Member, digest: Digest | None) -> Digest:
        kept, is_new = await self._keeper.keep(content, member, digest)
        if is_new:
            this.came[kept] = member.size
        elif digest is not None:
            await self._keeper.check(content, member, digest)
        this.carried.add(kept)
        return kept


def _survey(source: Source, claims: Claims, key: bytes | None) -> dict[str, bytes]:
    """Reads an archive's description. Returns the first bytes of every file. Blocks."""
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
    """Returns what every file must hold, by its name or by what the images say of it."""
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
