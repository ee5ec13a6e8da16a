"""Enters the images of an archive into a store: their manifests, names and pins, once their blobs are there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mirror.bundles.archive import ArchiveInvalid
from mirror.bundles.claims import Claim, Claims
from mirror.bundles.layout import moment
from mirror.bundles.parts import Parts, needed_blobs, parts_of
from mirror.cache.guarding import Guard, Ruling, refusal
from mirror.cache.lists import add_referrers
from mirror.errors import InUse
from mirror.hosted.manifests import pushed_manifest
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.store import Store, TagRecord

Referred = tuple[Repository, Digest, dict[str, Any]]
"""A referrer in an archive: its repository, its subject and its descriptor."""
_IMPORT = "mirror import"
"""Who pushed what comes from an archive."""
NAMELESS = "has no name in the archive: run it again with --as NAME"


@dataclass(frozen=True, slots=True)
class Received:
    """The result of importing one name of an archive. `fault` says why it is not served; empty if it is."""

    repository: Repository | None
    reference: Reference | None
    digest: Digest
    platforms: tuple[str, ...] = ()
    """The platforms that are cached completely."""
    came: int = 0
    """Bytes that were not cached before."""
    lacking: tuple[Digest, ...] = ()
    """What neither the archive nor the cache has."""
    rebuilt: bool = False
    fault: str = ""
    is_new_name: bool = False
    """True if the name did not stand for this image before, though its blobs may have been cached."""
    ruling: Ruling | None = None
    """What guards say of it; None if there are none, or it is not complete."""
    seen: str | None = None
    """When the mirror that wrote the bundle first learnt that the tag means this (RFC 3339), as the bundle says; None if it does not say so."""

    def __str__(self) -> str:
        return (
            f"an image {self.digest}"
            if self.repository is None or self.reference is None
            else image_name(self.repository, self.reference)
        )

    @property
    def state(self) -> str:
        """Returns a word or two for people."""
        if self.is_refused:
            return "refused"
        if self.fault:
            return "incomplete" if self.lacking else "not imported"
        if self.is_held:
            return "held"
        return "imported" if self.came or self.is_new_name else "already here"

    @property
    def is_refused(self) -> bool:
        """True if a guard lets nobody have anything by this name."""
        return self.ruling is not None and self.ruling.error is not None

    @property
    def is_held(self) -> bool:
        """True if a guard has the name mean something else for now."""
        return self.ruling is not None and self.ruling.serve is not None and self.ruling.held_until is not None

    @property
    def notes(self) -> list[str]:
        """Returns what guards do, or would do, to it, for people: clauses that begin with a verb."""
        if self.ruling is None or self.is_refused:
            return []
        served = f"; clients get {self.ruling.serve.digest}" if self.ruling.serve is not None else ""
        told = {
            "held": ("is held back", served),
            "would-hold": ("would be held back", ""),
            "would-refuse": ("would be refused", ""),
        }
        return [
            f"{told[verdict][0]} by the guard {rule!r}: {reason}{told[verdict][1]}"
            for rule, verdict, reason, _ in self.ruling.verdicts
        ]

    def document(self) -> dict[str, Any]:
        """Returns this as JSON."""
        ruling = self.ruling
        until = None if ruling is None else ruling.held_until
        return {
            "image": None if self.repository is None else str(self),
            "digest": str(self.digest),
            "platforms": list(self.platforms),
            "new": self.came,
            "new_name": self.is_new_name,
            "lacking": [str(digest) for digest in self.lacking],
            "rebuilt": self.rebuilt,
            "seen": self.seen,
            "fault": self.fault or None,
            "guards": [
                {"rule": rule, "verdict": verdict, "reason": reason}
                for rule, verdict, reason, _ in (ruling.verdicts if ruling else ())
            ],
            "held_until": moment(until),
            "served": str(ruling.serve.digest) if ruling and ruling.serve else None if self.fault else str(self.digest),
        }


class _Brought:
    """The archive, as guards look at it."""

    def __init__(self, claims: Claims, found: Iterable[Claim], referred: Iterable[Referred]) -> None:
        self._claims = claims
        self._meanings = {name: claim.root for claim in found for name in claim.names}
        self._referrers: dict[tuple[Repository, Digest], list[Digest]] = {}
        for repository, subject, described in referred:
            self._referrers.setdefault((repository, subject), []).append(Digest.parse(str(described["digest"])))

    def manifest(self, digest: Digest) -> Manifest | None:
        with contextlib.suppress(ArchiveInvalid):
            return self._claims.manifest(digest)
        return None

    def document(self, digest: Digest) -> bytes | None:
        return self._claims.documents.get(digest)

    def meaning(self, repository: Repository, tag: Tag) -> Digest | None:
        return self._meanings.get((repository, tag))

    def referrers(self, repository: Repository, digest: Digest) -> list[Digest]:
        return self._referrers.get((repository, digest), [])


class Receiver:
    """Enters images, one after the other. `is_here` returns whether a blob is cached, `came` how many of its bytes this import wrote, `carried` whether the archive has
    it. What the archive only names stays closed to those who may pull its images, unless not `is_closed`."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        is_here: Callable[[Digest], bool],
        came: Callable[[Digest], int],
        carried: Callable[[Digest], bool],
        platforms: Collection[str] | None,
        seen: Mapping[tuple[Repository, Reference, Digest], str],
        *,
        pin: bool,
        dry_run: bool,
        guard: Guard | None = None,
        is_closed: bool = True,
    ) -> None:
        self._store = store
        self._carried = carried
        self._is_closed = is_closed
        self._claims = claims
        self._is_here = is_here
        self._came = came
        self._platforms = platforms
        self._seen = seen
        self._pin = pin
        self._dry_run = dry_run
        self._guard = guard

    async def receive(self, found: Sequence[Claim], referred: Iterable[Referred]) -> list[Received]:
        """Enters each image of which at least one platform is cached completely. `referred` are the referrers that the archive brings."""
        brought = _Brought(self._claims, found, referred)
        return [one for claim in found for one in await self._receive(claim, brought)]

    async def _receive(self, claim: Claim, brought: _Brought) -> list[Received]:
        parts = await parts_of(claim, self._claims, self._platforms, self._store)
        lacking: dict[Digest, None] = {}
        if parts.root is None:
            lacking[claim.root] = None
        whole: dict[Digest, Manifest] = {}
        came = 0
        for digest, manifest in parts.images.items():
            blobs = {blob.digest for blob in needed_blobs(manifest)}
            came += sum(map(self._came, blobs))
            absent = [blob for blob in blobs if not self._is_here(blob)]
            lacking.update(dict.fromkeys(sorted(absent, key=str)))
            if not absent:
                whole[digest] = manifest
        came += sum(map(self._came, parts.listed))
        unlisted = [blob for blob in parts.listed if not self._is_here(blob)]
        lacking.update(dict.fromkeys(sorted(unlisted, key=str)))
        for_containers = [digest for digest in parts.images if parts.is_for_containers(digest)]
        some = bool(whole) or (bool(parts.listed) and not unlisted)
        served = some and (not for_containers or any(digest in whole for digest in for_containers))
        platforms = tuple(dict.fromkeys(parts.platforms[digest] for digest in for_containers if digest in whole))
        fault = parts.fault
        if not served and not fault:
            fault = (
                f"is not complete: {_listed(tuple(lacking))} missing" if lacking else "has nothing in the archive but an index"
            )
        if not claim.names:
            return [Received(None, None, claim.root, platforms, came, tuple(lacking), claim.rebuilt, fault or NAMELESS)]
        received = []
        was_here = await self._store.manifest(claim.root) is not None
        for repository, reference in claim.names:
            is_new = not was_here
            if isinstance(reference, Tag):
                record = await self._store.tag(repository, reference)
                is_new = record is None or record.descriptor.digest != claim.root
            ruling, refused, enters = None, fault, not fault
            if not fault and self._guard is not None and parts.root is not None:
                ruling, enters = await self._ruled(self._guard, repository, reference, parts.root.descriptor, brought)
                refused = _refusal(ruling, enters)
            if enters and parts.root is not None and not await self._may_have(repository, parts.root.digest):
                refused, enters = "is only named by the archive, which does not have its manifest: export it again", False
            if enters and self._store.hosted.covers(repository) and not self._dry_run:
                here = [blob for blob in parts.needed() if self._is_here(blob)]
                if closed := [blob for blob in here if not await self._may_have(repository, blob)]:
                    refused, enters = (
                        f"is not complete: {_listed(tuple(closed))} not in the archive, nor {repository.path}'s",
                        False,
                    )
            if enters and not self._dry_run:
                try:
                    await self._enter(repository, reference, parts, whole, ruling)
                except InUse as error:
                    # An immutable tag of a hosted repository.
                    refused = f"is refused: {error.message}"
            received.append(
                Received(
                    repository,
                    reference,
                    claim.root,
                    platforms,
                    came,
                    tuple(lacking),
                    claim.rebuilt,
                    refused,
                    is_new,
                    ruling,
                    self._seen.get((repository, reference, claim.root)),
                )
            )
        return received

    async def _ruled(
        self, guard: Guard, repository: Repository, reference: Reference, root: Descriptor, brought: _Brought
    ) -> tuple[Ruling, bool]:
        """Decides on an image. Returns the ruling, and whether the image comes in: it does unless its digest is refused, since what is only held back is
        served later. To a hosted repository it comes as if it were pushed."""
        ruling = await guard.foresee(repository, root.digest, root, brought)
        if ruling.error is not None:
            return ruling, False
        if isinstance(reference, Tag):
            ruling = await guard.foresee(repository, reference, root, brought)
            if self._store.hosted.covers(repository) and ruling.held_until is not None and not ruling.may_pass:
                rule, _, reason, check = ruling.verdicts[0]
                refused = refusal(image_name(repository, reference), rule, reason, root.digest)
                return Ruling(
                    None, refused, ruling.held_until, verdicts=((rule, "refused", reason, check), *ruling.verdicts[1:])
                ), False
        return ruling, True

    async def _enter(
        self,
        repository: Repository,
        reference: Reference,
        parts: Parts,
        whole: dict[Digest, Manifest],
        ruling: Ruling | None,
    ) -> None:
        hosted = self._store.hosted.covers(repository)
        carried = [blob for blob in parts.needed() if self._carried(blob)]
        if not hosted:
            manifests = [manifest.digest for manifest in (*whole.values(), *parts.indexes.values())]
            await self._store.note_brought(None, [*manifests, *carried])
            if isinstance(reference, Tag):
                await self._store.note_brought(repository, [reference])
        for manifest in (*whole.values(), *parts.indexes.values()):
            if not await self._may_have(repository, manifest.digest):
                continue
            if hosted:
                await self._host(repository, manifest)
            else:
                await self._store.put_manifest(repository, manifest, told=False)
        if not hosted:
            await self._store.note_holder(repository, carried, told=False)
        assert parts.root is not None
        if isinstance(reference, Tag) and hosted:
            await self._host(repository, parts.root, reference.value, served=ruling is None or ruling.held_until is None)
        elif isinstance(reference, Tag):
            now, found = time.time(), parts.root.descriptor
            if ruling is None:
                await self._store.set_tag(repository, reference, TagRecord(found, now))
            else:
                before = await self._store.tag(repository, reference)
                got = ruling.serve or (found if before is None else before.descriptor)
                await self._store.note_tag(repository, reference, found, now)
                await self._store.set_tag(repository, reference, TagRecord(got, now, ruling.held_until), seen=False)
        if self._pin:
            await self._store.pin(repository, reference)

    async def _may_have(self, repository: Repository, digest: Digest) -> bool:
        return not self._is_closed or self._carried(digest) or repository in await self._store.holders(digest)

    async def _host(self, repository: Repository, manifest: Manifest, *tags: str, served: bool = True) -> None:
        """Enters a manifest into a repository that lives here, with what is here of what it names: an archive may lack platforms. `served` as in
        `HostedStore.put_manifest`. Raises MirrorError."""
        pushed = pushed_manifest(manifest.body, manifest.media_type, manifest.digest)
        for digest in pushed.children:
            if await self._may_have(repository, digest):
                await self._store.hosted.mount(repository, digest, _IMPORT)
        await self._store.hosted.put_manifest(repository, replace(pushed, needed=frozenset()), tags, _IMPORT, served=served)

    async def enter_referrers(self, referred: Iterable[Referred]) -> None:
        """Stores the referrers of images as a list that upstream gave long ago, so that upstream is asked again when it can be."""
        for repository, subject, described in referred:
            digest = Digest.parse(str(described["digest"]))
            if self._store.size(digest) is None or not await self._may_have(repository, digest):
                continue
            if self._store.hosted.covers(repository):
                if (manifest := await self._store.manifest(digest)) is not None:
                    await self._host(repository, manifest)
                continue
            await add_referrers(self._store, repository, subject, [described])


def _refusal(ruling: Ruling, enters: bool) -> str:
    """Returns why a guard lets nobody have an image; empty if it does."""
    if ruling.error is None:
        return ""
    rule, _, reason, _ = ruling.verdicts[0]
    return (
        f"is refused by the guard {rule!r}: {reason}{'; it is here, and is served once the guard lets it pass' if enters else ''}"
    )


def _listed(digests: tuple[Digest, ...]) -> str:
    named = ", ".join(map(str, digests[:3]))
    return f"{named} is" if len(digests) == 1 else f"{named}{f' and {len(digests) - 3} more' if len(digests) > 3 else ''} are"
