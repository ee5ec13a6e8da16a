"""Manifests by tag and by digest: answers from memory, from the store, or from upstream, and only what the guards let pass."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from mirror.cache.guarding import Guard, Guarded, Ruling
from mirror.cache.negative import key_of
from mirror.cache.outcome import HIT, STALE, Outcome, miss
from mirror.cache.tag_checks import OF_ITS_DIGEST, TagChecks
from mirror.cdn_loop import asking_the_registry_only
from mirror.errors import Denied, ManifestUnknown, MirrorError, Unknown, UpstreamError, UpstreamFailed, UpstreamInvalid
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.store import TagRecord

_MOST_RULINGS = 5
"""How often it is decided on a tag for one request: again once a manifest is here that had to be read for it."""

_MOST_BACK = 5
"""Images that a tag means or has meant, and that cannot be had, until it is given up to look for one."""


class Tags(TagChecks):
    """Answers for manifests."""

    # ------------------------------------------------------------------ by whatever reference

    def hot(self, repository: Repository, reference: Reference) -> Manifest | None:
        """Returns a manifest that is in memory, by a digest or a fresh tag: the fastest kind of hit. None otherwise."""
        found = self.hot_unchecked(repository, reference)
        if found is None or self.guard is None:
            return found
        return found if self.guard.passes(repository, reference, found.digest) else None

    def hot_unchecked(self, repository: Repository, reference: Reference) -> Manifest | None:
        """Like `hot`, for callers who know that the guard lets it pass."""
        if self.own.covers(repository):
            return self.own.hot(repository, reference)
        if isinstance(reference, Tag):
            record = self._memory.get((repository, reference))
            if record is None or not self._fresh(record):
                return None
            reference = record.descriptor.digest
        return self._store.hot_manifest(reference)

    async def get(self, repository: Repository, reference: Reference) -> tuple[Manifest, Outcome]:
        """A manifest whole. Raises MirrorError."""
        if self.guard is None:
            return await self.get_unchecked(repository, reference)
        if isinstance(reference, Digest):
            return await self._get_guarded(self.guard, repository, reference)
        if self.own.covers(repository):
            return await self._own_allowed(self.guard, repository, reference)
        return await self._allowed(self.guard, repository, reference, *await self._ask_for_tag(repository, reference))

    async def get_unchecked(self, repository: Repository, reference: Reference) -> tuple[Manifest, Outcome]:
        """Like `get`, without asking the guard: not for clients."""
        if self.own.covers(repository):
            return await self.own.manifest(repository, reference), HIT
        if isinstance(reference, Digest):
            try:
                return await self._by_digest(repository, reference)
            except OF_ITS_DIGEST as error:
                return await self._by_tags(repository, reference, error)
        began = self._clock()
        record = await self._record(repository, reference)
        if record is None:
            return await self._first(repository, reference, began)
        descriptor, outcome = await self._current(repository, reference, record, began)
        manifest, fetched = await self._meant(repository, reference, descriptor.digest)
        return manifest, outcome if fetched is HIT else fetched

    async def resolve(self, repository: Repository, reference: Reference) -> tuple[Descriptor, Outcome]:
        """What a manifest is, without having it: a miss asks upstream with HEAD. Raises MirrorError."""
        if self.own.covers(repository):
            return (await self.get(repository, reference))[0].descriptor, HIT
        if self.guard is None:
            return await self._resolve(repository, reference)
        if isinstance(reference, Digest):
            ruling = await self._check_digest(self.guard, repository, reference, await self._store.manifest(reference))
            if ruling.complete:
                return await self._resolve(repository, reference)
            # It has to be read to decide, and clients get by HEAD what they get by GET.
            manifest, outcome = await self._get_guarded(self.guard, repository, reference)
            return manifest.descriptor, outcome
        descriptor, outcome = await self._ask_for_tag(repository, reference)
        ruling = await self._ruled(self.guard, repository, reference, descriptor)
        if not ruling.complete or (
            ruling.serve is not None and await self._is_in_doubt(repository, reference, ruling.serve, ruling)
        ):
            manifest, outcome = await self._allowed(self.guard, repository, reference, descriptor, outcome)
            return manifest.descriptor, outcome
        self.guard.count(repository, reference, ruling)
        if ruling.error is not None:
            raise ruling.error
        descriptor = ruling.serve or descriptor
        cached = await self._store.manifest(descriptor.digest)
        return cached.descriptor if cached is not None else descriptor, outcome

    async def _is_in_doubt(self, repository: Repository, tag: Tag, serve: Descriptor, ruling: Ruling) -> bool:
        """Returns whether it has to be tried to fetch a manifest before clients are told of it: a tag moves on once the new one is here, and the one that is served
        in place of another may be had no longer."""
        record = await self._record(repository, tag)
        if record is not None and await self._is_ahead(serve, record):
            return True
        return ruling.held_until is not None and await self._store.manifest(serve.digest) is None

    async def _resolve(self, repository: Repository, reference: Reference) -> tuple[Descriptor, Outcome]:
        began = self._clock()
        if isinstance(reference, Digest):
            if (manifest := await self._store.manifest(reference)) is not None:
                return manifest.descriptor, HIT
        elif (record := await self._record(repository, reference)) is not None:
            descriptor, outcome = await self._current(repository, reference, record, began)
            # The size or type from HEAD may be wrong.
            cached = await self._store.manifest(descriptor.digest)
            return cached.descriptor if cached is not None else descriptor, outcome
        try:
            await self._negative.check(key_of(repository, reference))
            key = self._key(repository, reference, "head")
            descriptor, joined = await self._descriptors.do(key, lambda: self._head(repository, reference, began))
        except (Unknown, Denied, UpstreamError) as error:
            if isinstance(reference, Tag):
                raise
            if (embedded := await self._embedded(repository, reference)) is not None:
                return embedded.descriptor, HIT
            if not isinstance(error, OF_ITS_DIGEST):
                raise
            manifest, outcome = await self._by_tags(repository, reference, error)
            return manifest.descriptor, outcome
        return descriptor, miss(joined)

    def age(self, repository: Repository, tag: Tag) -> float | None:
        """Returns how many seconds ago a registry said what a tag means; None if that is not in memory."""
        record = self._memory.get((repository, tag))
        return None if record is None else max(self._clock() - record.checked, 0.0)

    async def refresh(self, repository: Repository, tag: Tag) -> Descriptor:
        """What a tag means by upstream's word of now, fresh or not; its manifest is cached then. Raises MirrorError."""
        with asking_the_registry_only():
            return await self._refresh(repository, tag)

    async def _refresh(self, repository: Repository, tag: Tag) -> Descriptor:
        if self.own.covers(repository):
            return (await self.get(repository, tag))[0].descriptor
        began = self._clock()
        self._held.pop((repository, tag), None)
        record = await self._record(repository, tag)
        if record is not None:
            key = self._key(repository, tag, "check")
            found, _ = await self._descriptors.do(key, lambda: self._check(repository, tag, record, began))
        elif self.guard is not None:
            found, _ = await self._ask_for_tag(repository, tag)
        else:
            key = self._key(repository, tag)
            manifest, _ = await self._manifests.do(key, lambda: self._fetch(repository, tag, began))
            return manifest.descriptor
        if self.guard is not None:
            return (await self._allowed(self.guard, repository, tag, found, HIT))[0].descriptor
        manifest, _ = await self._meant(repository, tag, found.digest)
        return manifest.descriptor

    # ------------------------------------------------------------------ guarded

    async def pushed(self, repository: Repository, tags: Collection[Tag]) -> None:
        """Takes note that a manifest was pushed, with these tags: it may be a signature of others."""
        self.forget([(repository, tag) for tag in tags])
        if (guard := self.guard) is not None:
            guard.forget_repository(repository)
            for tag in tags:
                # Another request may have deleted it meanwhile.
                with contextlib.suppress(MirrorError):
                    await self.own.rule(guard, repository, tag)

    async def _own_allowed(self, guard: Guard, repository: Repository, tag: Tag) -> tuple[Manifest, Outcome]:
        ruling, pushed = await self.own.rule(guard, repository, tag)
        guard.count(repository, tag, ruling)
        if ruling.serve is None:
            assert ruling.error is not None
            raise ruling.error
        if ruling.serve.digest == pushed.digest:
            return pushed, HIT
        lost: set[Digest] = set()
        while True:
            try:
                return await self.own.manifest(repository, ruling.serve.digest), HIT
            except ManifestUnknown:
                lost.add(ruling.serve.digest)
                ruling = await guard.rule_tag(repository, tag, pushed.descriptor, frozenset(lost))
                if ruling.serve is None or len(lost) >= _MOST_BACK:
                    raise

    async def _get_guarded(self, guard: Guard, repository: Repository, reference: Digest) -> tuple[Manifest, Outcome]:
        await self._check_digest(guard, repository, reference, None)
        manifest, outcome = await self.get_unchecked(repository, reference)
        await self._check_digest(guard, repository, manifest.digest, manifest)
        return manifest, outcome

    async def _check_digest(self, guard: Guard, repository: Repository, digest: Digest, manifest: Manifest | None) -> Ruling:
        """Returns what is decided on a manifest. Raises Guarded if it must not be served."""
        ruling = await guard.rule_digest(repository, digest, manifest)
        if manifest is not None or ruling.error is not None:
            guard.count(repository, digest, ruling)
        if ruling.error is not None:
            raise ruling.error
        return ruling

    async def _ask_for_tag(self, repository: Repository, tag: Tag) -> tuple[Descriptor, Outcome]:
        """Has the history say what the registry means by a tag. Returns what clients got by it last."""
        began = self._clock()
        record = await self._record(repository, tag)
        if record is not None:
            return await self._current(repository, tag, record, began)
        await self._negative.check(key_of(repository, tag))
        key = self._key(repository, tag, "head")
        descriptor, joined = await self._descriptors.do(key, lambda: self._head(repository, tag, began))
        return descriptor, miss(joined)

    async def _ruled(self, guard: Guard, repository: Repository, tag: Tag, known: Descriptor) -> Ruling:
        """Decides what clients get by a tag, and remembers it. `known` is what they got last."""
        stored = await self._record(repository, tag)
        checked = self._clock() if stored is None else stored.checked
        while True:
            before = self._memory.get((repository, tag))
            ruling = await guard.rule_tag(repository, tag, known)
            if self._memory.get((repository, tag)) is before:
                break
            # It was asked about meanwhile.
        if not ruling.complete:
            # It is decided once the manifest is here.
            return ruling
        record = TagRecord(ruling.serve or known, checked, ruling.held_until)
        if before is not None and ruling.serve is not None and await self._is_ahead(ruling.serve, before):
            return ruling
        if record != before:
            self._keep(repository, tag, record)
            await self._store.set_tag(repository, tag, record, seen=False)
        return ruling

    async def _is_ahead(self, new: Descriptor, before: TagRecord) -> bool:
        """Returns whether a new manifest is not here yet, while the one before can still be served."""
        old = before.descriptor.digest
        return (
            new.digest != old and await self._store.manifest(new.digest) is None and await self._store.manifest(old) is not None
        )

    async def _allowed(
        self, guard: Guard, repository: Repository, tag: Tag, known: Descriptor, outcome: Outcome
    ) -> tuple[Manifest, Outcome]:
        """Returns the manifest that clients get by a tag. Raises MirrorError."""
        for _ in range(_MOST_RULINGS):
            ruling = await self._ruled(guard, repository, tag, known)
            if ruling.error is not None or ruling.serve is None:
                guard.count(repository, tag, ruling)
                assert ruling.error is not None
                raise ruling.error
            manifest = await self._store.manifest(ruling.serve.digest) if ruling.complete else None
            if manifest is not None:
                guard.count(repository, tag, ruling)
                return manifest, outcome
            try:
                fetched = await self._fetch_ruled(repository, tag, ruling.serve, held=ruling.held_until is not None)
            except (UpstreamError, Unknown, Denied) as error:
                if (stale := await self._before(guard, repository, tag, ruling.serve, error)) is not None:
                    if ruling.held_until is not None:
                        guard.count(repository, tag, ruling)
                    return stale, STALE
                if ruling.held_until is None:
                    raise
                raise Guarded(
                    f"{repository}:{tag} is held back, and what it meant before, {ruling.serve.digest}, is neither here nor at the"
                    f" registry: {error}",
                    ruling.verdicts[0][0],
                    digest=ruling.serve.digest,
                ) from error
            outcome = outcome if fetched is HIT else fetched
        raise UpstreamInvalid(f"{repository}:{tag} means something else each time that it is asked for")

    async def _fetch_ruled(self, repository: Repository, tag: Tag, wanted: Descriptor, *, held: bool) -> Outcome:
        try:
            return (await self._by_digest(repository, wanted.digest))[1]
        except OF_ITS_DIGEST:
            if held:
                raise
            # Known by HEAD only, and not to be had by its digest: what does the tag mean now?
            before = await self._record(repository, tag)
            if before is not None and before.descriptor.digest == wanted.digest:
                before = None
            await self._remember(repository, tag, await self._got(repository, tag, before))
            return miss()

    async def _before(
        self, guard: Guard, repository: Repository, tag: Tag, lost: Descriptor, error: MirrorError
    ) -> Manifest | None:
        """Returns the last image that clients got by a tag and may still get, without the one that is `lost` to `error`; None if there is none, here or, where the
        registry answers, there."""
        without = {lost.digest}
        # Where it does not answer, others of its images cannot be had either.
        asks = isinstance(error, OF_ITS_DIGEST) and not isinstance(error, UpstreamFailed)
        for _ in range(2 * _MOST_BACK):
            ruling = await guard.rule_tag(repository, tag, lost, frozenset(without))
            if ruling.serve is None:
                break
            if (manifest := await self._store.manifest(ruling.serve.digest)) is not None:
                return manifest
            if asks:
                with contextlib.suppress(UpstreamError, Unknown, Denied):
                    # Once it is here, it is decided on once more: it can be read now.
                    await self._by_digest(repository, ruling.serve.digest)
                    continue
            without.add(ruling.serve.digest)
            if len(without) >= _MOST_BACK:
                break
        return None
