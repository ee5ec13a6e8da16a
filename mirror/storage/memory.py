"""A store in memory, of one process: for tests of what stands above a store, and the other half of the conformance suite."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self, cast

from mirror.errors import ManifestUnknown, Pinned, StorageFull
from mirror.manifests import Manifest, children_of, payload_of
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.hosted import HostedCollected
from mirror.storage.memory_hosted import MemoryHosted
from mirror.storage.memory_partial import MemoryDownload, MemoryPartial, MemoryPeers
from mirror.storage.memory_possessions import MemoryPossessions
from mirror.storage.memory_sightings import MemorySightings
from mirror.storage.settings import HostedRules
from mirror.storage.slices import Part
from mirror.storage.store import (
    Change,
    Collected,
    Deleted,
    Gone,
    ListedImage,
    Question,
    Restore,
    State,
    Statistics,
    TagRecord,
    Verified,
)

if TYPE_CHECKING:
    from types import TracebackType

_ORPHANED = 3600.0
"""Seconds without use after which a blob of no image goes, as on the disk."""


class MemoryReader:
    """A reader of finished content."""

    def __init__(self, content: bytes) -> None:
        self.size: int | None = len(content)
        self._content = content

    async def parts(self, start: int, stop: int | None) -> AsyncGenerator[Part, None]:
        if part := self._content[start:stop]:
            yield part

    async def aclose(self) -> None:
        pass


class MemoryStore(MemorySightings, MemoryPossessions, MemoryPeers):
    """Implements `mirror.storage.store.Store`. The least recently used blob goes first."""

    def __init__(self, max_size: int = 2**40, hosted: HostedRules | None = None) -> None:
        MemorySightings.__init__(self)
        MemoryPeers.__init__(self)
        self.hosted = MemoryHosted(self, hosted or HostedRules())
        self.content: dict[Digest, bytes] = {}
        """The least recently used first."""
        self.downloads: dict[tuple[Digest, int | None], MemoryDownload] = {}
        self.pulls: dict[tuple[Repository, Reference], int] = {}
        self._limit = max_size
        self._used: dict[Digest, float] = {}
        self._manifests: dict[Digest, Manifest] = {}
        self._holdings: dict[Digest, set[Repository]] = {}
        self._pins: dict[tuple[Repository, Reference], Digest | None] = {}
        """What each pinned reference meant last; None while that is unknown."""
        self._listed: dict[tuple[str, Repository, Reference], tuple[ListedImage, Digest | None]] = {}
        """Each with what it meant last, as in `_pins`."""
        self._attached: dict[tuple[str, Repository, Reference], set[Digest]] = {}
        """What is attached to listed images."""
        self._documents: dict[str, str] = {}
        self._status: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def start(self, restore: Restore) -> None:
        """There is nothing to do in the background."""

    def start_counting(self) -> None:
        """Pulls are counted in any case."""

    # ------------------------------------------------------------------ room

    def keep(self, digest: Digest, content: bytes) -> None:
        """Takes finished content in."""
        self.content[digest] = content
        self._used[digest] = time.time()

    def make_room(self, what: str) -> None:
        """Evicts until the store is within its limit, first downloads without a leader. Raises StorageFull if that is impossible."""
        for key, download in list(self.downloads.items()):
            if self._total() > self._limit and download.leader is None:
                download.current = False
                del self.downloads[key]
        kept = self._pinned() | self.hosted.content()
        for digest in [digest for digest in self.content if digest not in kept and digest not in self._manifests]:
            if self._total() <= self._limit:
                return
            self._drop(digest)
        if self._total() > self._limit:
            raise StorageFull(f"there is no room for {what}")

    def could_hold(self, digest: Digest) -> int:
        """How many bytes of a download could be kept if everything else went that may."""
        others = sum(download.have.total for (other, _), download in self.downloads.items() if other != digest)
        pinned = self._pinned() - self.hosted.content()
        return self._limit - others - sum(len(self.content[kept]) for kept in pinned if kept in self.content)

    def _total(self) -> int:
        downloads = sum(download.have.total for download in self.downloads.values())
        hosted = self.hosted.content()
        return downloads + sum(len(content) for digest, content in self.content.items() if digest not in hosted)

    def discard(self, digest: Digest) -> None:
        """Forgets content."""
        self._drop(digest)

    def is_pinned(self, repository: Repository, reference: Reference) -> bool:
        """True for what is pinned by hand."""
        return (repository, reference) in self._pins

    def _drop(self, digest: Digest) -> None:
        for known in (self.content, self._used, self._manifests, self._holdings, self.possessions):
            known.pop(digest, None)

    # ------------------------------------------------------------------ content

    async def open(self, digest: Digest) -> MemoryReader | None:
        content = self.content.pop(digest, None)
        if content is None:
            return None
        self.keep(digest, content)
        return MemoryReader(content)

    def size(self, digest: Digest) -> int | None:
        content = self.content.get(digest)
        return None if content is None else len(content)

    def verify_behind(self, digest: Digest) -> None:
        if self.damaged(digest):
            self._drop(digest)

    def damaged(self, digest: Digest) -> bool:
        """True where what is kept is not what its digest says."""
        return digest in self.content and Digest.of(self.content[digest], digest.algorithm) != digest

    def partial(self, digest: Digest, claimed: int | None = None) -> MemoryPartial:
        return MemoryPartial(self, digest, claimed)

    def hot_manifest(self, digest: Digest) -> Manifest | None:
        return self._manifests.get(digest)

    async def manifest(self, digest: Digest) -> Manifest | None:
        self.verify_behind(digest)
        if (found := self._manifests.get(digest)) is not None:
            self._used[digest] = time.time()
        return found

    async def manifests_of(self, images: Sequence[tuple[Repository, Reference]]) -> list[Manifest | None]:
        found: list[Manifest | None] = []
        for repository, reference in images:
            record = await self.tag(repository, reference) if isinstance(reference, Tag) else None
            digest = record.descriptor.digest if record is not None else reference
            found.append(None if isinstance(digest, Tag) else await self.manifest(digest))
        return found

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, told: bool = True) -> None:
        named = Digest.of(manifest.body, manifest.digest.algorithm) == manifest.digest
        self.keep(manifest.digest, manifest.body if named else payload_of(manifest.body) or b"")
        self._manifests[manifest.digest] = manifest
        self._holdings.setdefault(manifest.digest, set()).add(repository)
        if not self.hosted.covers(repository):
            self.possess(repository, manifest.digest, told=told)

    async def naming(self, blob: Digest, since: float) -> list[Digest]:
        return [digest for digest in self._manifests if blob in self._children(digest) and self._used[digest] >= since]

    async def statistics(self) -> Statistics:
        hosted = self.hosted.content()
        sizes = [len(content) for digest, content in self.content.items() if digest not in hosted]
        return Statistics(sum(sizes), len(sizes), self._limit)

    async def shortage(self) -> str:
        return f"the store may hold {self._limit} bytes"

    def _children(self, digest: Digest) -> set[Digest]:
        found = self._manifests.get(digest)
        return set() if found is None else {child for children in children_of(found.body) for child in children}

    def _family(self, roots: set[Digest]) -> set[Digest]:
        """With everything that they name, all the way down."""
        found: set[Digest] = set()
        while roots:
            found |= roots
            roots = {child for digest in roots for child in self._children(digest)} - found
        return found

    # ------------------------------------------------------------------ names

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        return self._tags.get((repository, tag.value))

    async def set_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, seen: bool = True) -> None:
        self._tags[repository, tag.value] = record
        self._note_served(repository, tag, record, seen)
        if (repository, tag) in self._pins:
            self._pins[repository, tag] = record.descriptor.digest
        for key, (image, _) in self._listed.items():
            if key[1:] == (repository, tag):
                self._listed[key] = image, record.descriptor.digest

    async def tags(self, repository: Repository, meaning: Digest | None = None) -> list[str]:
        return [
            tag
            for (holder, tag), record in self._tags.items()
            if holder == repository and meaning in (None, record.descriptor.digest)
        ]

    async def repositories(self) -> list[Repository]:
        found = {holder for digest in self._manifests for holder in self._holdings.get(digest, ())}
        found |= {holder for (holder, _), record in self._tags.items() if record.descriptor.digest in self.content}
        return sorted(found, key=lambda repository: (repository.registry, repository.path))

    async def holder(self, digest: Digest) -> Repository | None:
        for manifest, holders in self._holdings.items():
            if manifest == digest or digest in self._children(manifest):
                return next(iter(holders), None)
        return None

    async def holders(self, digest: Digest) -> frozenset[Repository]:
        by_tag = {holder for (holder, _), record in self._tags.items() if record.descriptor.digest == digest}
        return frozenset(by_tag | self.possessions.get(digest, {}).keys() | self.hosted.holders(digest))

    async def is_named(self, repository: Repository, digest: Digest) -> bool:
        return any(repository in holders and digest in self._children(one) for one, holders in self._holdings.items())

    async def document(self, key: str) -> dict[str, Any] | None:
        return cast("dict[str, Any] | None", json.loads(self._documents.get(key, "null")))

    async def set_document(self, key: str, value: dict[str, Any]) -> None:
        self._documents[key] = json.dumps(value)

    @asynccontextmanager
    async def lock(self, question: Question, key: str) -> AsyncIterator[None]:
        """There is no other process."""
        yield

    async def watch(self) -> AsyncGenerator[Change, None]:
        """There is no other process."""
        await asyncio.Event().wait()
        yield Change(False, ())

    # ------------------------------------------------------------------ what people do

    async def pin(self, repository: Repository, reference: Reference) -> bool:
        digest = self._meant(repository, reference)
        self._pins.setdefault((repository, reference), digest)
        return digest in self.content

    def _meant(self, repository: Repository, reference: Reference) -> Digest | None:
        if isinstance(reference, Digest):
            return reference
        record = self._tags.get((repository, reference.value))
        return None if record is None else record.descriptor.digest

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        if (repository, reference) not in self._pins:
            return False
        del self._pins[repository, reference]
        return True

    def _pinned(self) -> set[Digest]:
        listed = [digest for _, digest in self._listed.values()]
        listed += self._held_content()
        attached = set().union(*self._attached.values())
        return self._family({digest for digest in (*self._pins.values(), *listed, *attached) if digest is not None})

    async def set_listed(self, lists: Mapping[str, Collection[tuple[Repository, Reference]] | None]) -> None:
        before, self._listed = self._listed, {}
        for name, images in lists.items():
            self._listed |= {
                key: value for key, value in before.items() if key[0] == name and (images is None or key[1:] in images)
            }
            for image in images or ():
                new = ListedImage(name, *image, time.time(), None, None, 0, "")
                self._listed.setdefault((name, *image), (new, self._meant(*image)))
        self._attached = {key: digests for key, digests in self._attached.items() if key in self._listed}

    async def listed(self) -> list[ListedImage]:
        return sorted((image for image, _ in self._listed.values()), key=lambda image: image.list)

    async def note_listed(
        self, name: str, repository: Repository, reference: Reference, tried: float, fault: str, attached: Collection[Digest] = ()
    ) -> None:
        key = name, repository, reference
        if key in self._listed:
            image, digest = self._listed[key]
            ran, failures = (image.ran, image.failures + 1) if fault else (tried, 0)
            self._listed[key] = dataclasses.replace(image, tried=tried, ran=ran, failures=failures, fault=fault), digest
            self._attached[key] = set(attached) | (self._attached.get(key, set()) if fault else set())

    def lead_lists(self) -> AbstractContextManager[None]:
        """There is no other process."""
        return nullcontext()

    async def delete(self, repository: Repository, reference: Reference, *, force: bool = False) -> Deleted:
        if isinstance(reference, Tag):
            record = self._tags.get((repository, reference.value))
            digest, tags = (None, []) if record is None else (record.descriptor.digest, [reference.value])
        else:
            digest = reference
            tags = [tag for (holder, tag), one in self._tags.items() if holder == repository and one.descriptor.digest == digest]
            if not tags and repository not in self._holdings.get(digest, ()):
                digest = None
        if digest is None:
            raise ManifestUnknown(f"nothing is cached of {image_name(repository, reference)}")
        names: list[Reference] = [Tag(tag) for tag in tags] + ([] if isinstance(reference, Tag) else [digest])
        if not force and any((repository, name) in self._pins for name in names):
            raise Pinned(f"{image_name(repository, reference)} is pinned: unpin it first, or force it")
        listed = [key for key in self._listed if key[1] == repository and key[2] in (*names, reference)]
        if listed and not force:
            raise Pinned(
                f"{image_name(repository, reference)} is in the list {listed[0][0]} of [[warm]]: remove it there, or force it"
            )
        for key in listed:
            self._listed[key] = self._listed[key][0], None
            self._attached.pop(key, None)
        for name in names:
            self._pins.pop((repository, name), None)
            self._tags.pop((repository, str(name)), None)
            if isinstance(name, Tag) and self.hosted.is_linked(repository, digest):
                self._note_gone(repository, name, time.time())
        if not any(holder == repository and one.descriptor.digest == digest for (holder, _), one in self._tags.items()):
            self._holdings.get(digest, set()).discard(repository)
            self.possessions.get(digest, {}).pop(repository, None)
        if repository not in self._holdings.get(digest, ()):
            self.hosted.forget(repository, digest)
        return self._delete(repository, digest, tuple(tags))

    def _delete(self, repository: Repository, digest: Digest, tags: tuple[str, ...]) -> Deleted:
        family = self._family({digest}) & self.content.keys()
        roots = {record.descriptor.digest for record in self._tags.values()} | self._pinned() | self.hosted.content()
        roots |= {one for one in family if self._holdings.get(one, set()) - {repository}}
        roots |= self._manifests.keys() - family
        gone = family - self._family(roots)
        freed, kept = (sum(len(self.content[one]) for one in part) for part in (gone, family - gone))
        for one in gone:
            self._drop(one)
        return Deleted(digest, tags, freed, kept)

    async def collect(self, *, dry_run: bool = False) -> Collected:
        before = time.time() - _ORPHANED
        named = self._family(set(self._manifests)) | self._pinned()
        hosted = HostedCollected((), 0, 0, 0, 0) if dry_run else await self.hosted.collect()
        named |= self.hosted.content()
        orphans = [digest for digest in self.content if digest not in named and self._used[digest] < before]
        gone = Gone(len(orphans), sum(len(self.content[digest]) for digest in orphans))
        if not dry_run:
            for digest in orphans:
                self._drop(digest)
        return Collected(Gone(0, 0), gone, Gone(0, 0), Gone(0, 0), hosted)

    async def contents(self) -> Mapping[Digest, int]:
        return {digest: len(content) for digest, content in self.content.items()}

    async def verify(self, contents: Mapping[Digest, int], *, remove: bool) -> AsyncGenerator[Verified, None]:
        for digest, size in contents.items():
            if digest not in self.content:
                continue
            if not self.damaged(digest):
                yield Verified(digest, size, State.WHOLE)
                continue
            found = Verified(digest, size, State.DAMAGED, await self.holder(digest), digest in self._manifests)
            if remove:
                self._drop(digest)
            yield found

    # ------------------------------------------------------------------ usage

    async def set_status(self, value: Any) -> None:
        self._status = value

    async def statuses(self) -> list[Any]:
        return [] if self._status is None else [json.loads(json.dumps(self._status))]

    def count_pull(self, repository: Repository, reference: Reference) -> None:
        self.pulls[repository, reference] = self.pulls.get((repository, reference), 0) + 1
