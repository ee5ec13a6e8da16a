"""What upstream says of tags and manifests, and how long that counts: the lower half of `mirror.cache.tags`.

A tag is fresh for `ttl`. Then upstream is asked with HEAD, which Docker Hub does not count as a pull, and only a changed digest costs a GET; the tag moves on
once the new manifest is here, not before. When upstream is down, slow or limiting, the old answer is served and the check goes on behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from mirror import metrics
from mirror.cache.configurations import Fetch, read_configuration
from mirror.cache.embedded import find_embedded
from mirror.cache.freshness import is_fresh
from mirror.cache.guarding import Guard
from mirror.cache.negative import Negative, key_of
from mirror.cache.newest import ManifestSource, Newest
from mirror.cache.outcome import HIT, STALE, VALIDATED, Outcome, miss
from mirror.cache.own import Own
from mirror.cdn_loop import asking_the_registry_only
from mirror.errors import Denied, ManifestUnknown, MirrorError, Unknown, UpstreamError, UpstreamFailed, UpstreamInvalid
from mirror.manifests import Descriptor, Manifest, media_type_of
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.store import Question, Store, TagRecord
from mirror.tasks import SingleFlight, close_all

log = logging.getLogger(__name__)

_MOST_IN_MEMORY = 50_000
_MOST_COMPARED = 16
_MOST_TAGS = 4
"""Tags by which a manifest is asked for that upstream does not give by its digest. Each costs a GET, which may count as a pull."""
_HOLD = 30.0
"""Seconds that a tag whose check failed is served stale without asking again, unless its `ttl` is shorter."""

OF_ITS_DIGEST = (Unknown, Denied, UpstreamInvalid, UpstreamFailed)
"""Errors by which a manifest is refused under its digest. They say nothing of its tag, which may be given."""


class TagChecks:
    """Asks upstream what tags mean, and remembers it."""

    def __init__(
        self,
        store: Store,
        source: Callable[[str], ManifestSource],
        negative: Negative,
        ttl: float,
        patience: float,
        offline: Callable[[], bool],
        fetch: Fetch,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`ttl` and `patience`, how long a check may hold a client, in seconds; `source` gives a registry by its name. While `offline`, tags are not checked.
        `fetch` downloads the configurations of images whose dates are compared."""
        self.own = Own(store)
        self._offline = offline
        self._store = store
        self._source = source
        self._negative = negative
        self._ttl = ttl
        self._patience = patience
        self._clock = clock
        self._memory: OrderedDict[tuple[Repository, Tag], TagRecord] = OrderedDict()
        self._held: dict[tuple[Repository, Tag], float] = {}
        self._descriptors: SingleFlight[Descriptor] = SingleFlight()
        self._manifests: SingleFlight[Manifest] = SingleFlight()
        self._compared: OrderedDict[tuple[Repository, Reference], Manifest] = OrderedDict()
        """Manifests that were fetched to compare them, for whoever needs the chosen one next."""
        self.guard: Guard | None = None
        """What decides what may be served; None if there is nothing to decide by."""
        self.proves: Callable[[Repository, Digest], Awaitable[bool]] = _not_asked
        """Returns whether a repository has a manifest that another mirror or a bucket gave. Raises UpstreamError while that is not known."""
        self._newest = Newest(self._to_compare, partial(read_configuration, store, fetch), clock)

    async def aclose(self) -> None:
        await close_all(self._descriptors.aclose, self._manifests.aclose)

    def forget(self, tags: Iterable[tuple[Repository, Tag]] | None = None) -> None:
        """Forgets what tags mean, or some of them; the store knows."""
        tags = None if tags is None else tuple(tags)
        self.own.forget(tags)
        if tags is None:
            self._memory.clear()
            self._held.clear()
            return
        for tag in tags:
            self._memory.pop(tag, None)
            self._held.pop(tag, None)
            if self.guard is not None:
                self.guard.forget_tag(*tag)

    # ------------------------------------------------------------------ upstream

    async def _by_digest(self, repository: Repository, digest: Digest) -> tuple[Manifest, Outcome]:
        if (manifest := await self._store.manifest(digest)) is not None:
            return manifest, HIT
        try:
            await self._negative.check(key_of(repository, digest))
            key = self._key(repository, digest)
            manifest, joined = await self._manifests.do(key, lambda: self._fetch(repository, digest, 0.0))
        except (Unknown, Denied, UpstreamError):
            if (embedded := await self._embedded(repository, digest)) is None:
                raise
            return embedded, HIT
        return manifest, miss(joined)

    async def _meant(self, repository: Repository, tag: Tag, digest: Digest) -> tuple[Manifest, Outcome]:
        """Returns the manifest that a tag means. Raises MirrorError."""
        try:
            return await self._by_digest(repository, digest)
        except OF_ITS_DIGEST:
            # Known by HEAD only, and gone from upstream since, or not to be had by its digest: what does the tag mean now?
            return await self._first(repository, tag, self._clock())

    async def _embedded(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Returns a manifest that a cached one embeds, and caches it; None if there is none."""
        if (data := await find_embedded(self._store, repository, digest)) is None:
            return None
        try:
            manifest = Manifest(media_type_of(data, None, verified=True), digest, data)
        except UpstreamInvalid:
            # A configuration, or a layer.
            return None
        await self._store.put_manifest(repository, manifest)
        return manifest

    async def _by_tags(self, repository: Repository, digest: Digest, error: MirrorError) -> tuple[Manifest, Outcome]:
        """A manifest that upstream does not give by its digest, though HEAD of a tag named it: a replica that lags behind gives it by the tag.

        Where it does not, the tag is asked about anew. Raises `error` where no tag was known to mean it.
        """
        here = [tag for (of, tag), record in self._memory.items() if of == repository and record.descriptor.digest == digest]
        # Another process may have sent the HEAD, or this one before its last start.
        stored = [Tag(name) for name in await self._store.tags(repository, digest)]
        for tag in list(dict.fromkeys(here + stored))[:_MOST_TAGS]:
            if isinstance(error, Unknown) and error.certain:
                self._memory.pop((repository, tag), None)
                await self._store.drop_tag(repository, tag)
            manifest, outcome = await self._first(repository, tag, self._clock())
            if manifest.digest == digest:
                return manifest, outcome
        raise error

    async def _first(self, repository: Repository, tag: Tag, since: float) -> tuple[Manifest, Outcome]:
        await self._negative.check(key_of(repository, tag))
        manifest, joined = await self._manifests.do(self._key(repository, tag), lambda: self._fetch(repository, tag, since))
        return manifest, miss(joined)

    def _key(self, repository: Repository, reference: Reference, question: str = "get") -> str:
        """Returns the key of a question for upstream. One that is asked of another mirror of the fleet has its own: whom such a mirror asks does not wait for that."""
        peer = self._source(repository.registry).asks_peer(repository, reference)
        return f"{question} {repository} {reference}{' of a peer' if peer else ''}"

    async def _to_compare(self, repository: Repository, digest: Digest) -> Manifest:
        """Returns a manifest without caching it, since what is not chosen is no image of this cache. Raises MirrorError."""
        if (manifest := await self._store.manifest(digest)) is None:
            manifest = await self._source(repository.registry).get_manifest(repository, digest)
            self._compared[repository, digest] = manifest
            if len(self._compared) > _MOST_COMPARED:
                self._compared.popitem(last=False)
        return manifest

    async def _fetch(self, repository: Repository, reference: Reference, since: float) -> Manifest:
        if isinstance(reference, Tag) and self._source(repository.registry).compares_tags:
            key = self._key(repository, reference, "head")
            descriptor, _ = await self._descriptors.do(key, lambda: self._head(repository, reference, since))
            # A tag may be had where its manifest's digest is not known yet.
            with contextlib.suppress(*OF_ITS_DIGEST):
                return (await self._by_digest(repository, descriptor.digest))[0]
        async with self._store.lock(Question.FETCH, self._key(repository, reference)):
            if (manifest := await self._fetched_elsewhere(repository, reference, since)) is not None:
                return manifest
            return await self._fetch_now(repository, reference)

    async def _fetched_elsewhere(self, repository: Repository, reference: Reference, since: float) -> Manifest | None:
        """What another process has fetched meanwhile; of a tag, what it has asked for `since`."""
        if isinstance(reference, Tag):
            record = await self._stored_since(repository, reference, since)
            if record is None:
                return None
            reference = record.descriptor.digest
        return await self._store.manifest(reference)

    async def _stored_since(self, repository: Repository, tag: Tag, since: float) -> TagRecord | None:
        stored = await self._store.tag(repository, tag)
        if stored is None or not since <= stored.checked <= self._clock():
            return None
        self._adopt(repository, tag, stored)
        return stored

    async def _fetch_now(self, repository: Repository, reference: Reference) -> Manifest:
        try:
            manifest = self._compared.pop((repository, reference), None)
            if manifest is None:
                manifest = await self._source(repository.registry).get_manifest(repository, reference)
            if not manifest.told and not await self._is_proven(repository, manifest):
                return manifest
        except Unknown as error:
            await self._unknown(repository, reference, error)
            raise
        await self._store.put_manifest(repository, manifest)
        if isinstance(reference, Tag):
            await self._remember(repository, reference, manifest.descriptor)
        return manifest

    async def _is_proven(self, repository: Repository, manifest: Manifest) -> bool:
        """Returns whether it may be kept as one that the repository has. Raises ManifestUnknown if it has not got it."""
        try:
            if await self.proves(repository, manifest.digest):
                return True
        except UpstreamError as error:
            log.info("%s of %s is not kept, since it is not known whether it has it: %s", manifest.digest, repository, error)
            return False
        raise ManifestUnknown(f"{repository.registry} has no manifest {manifest.digest} in {repository.path}")

    async def _head(self, repository: Repository, reference: Reference, since: float) -> Descriptor:
        async with self._store.lock(Question.FETCH, self._key(repository, reference, "head")):
            if isinstance(reference, Tag) and (record := await self._stored_since(repository, reference, since)) is not None:
                return record.descriptor
            return await self._head_now(repository, reference)

    async def _head_now(self, repository: Repository, reference: Reference) -> Descriptor:
        try:
            if isinstance(reference, Digest):
                return await self._source(repository.registry).head_manifest(repository, reference)
            descriptor = await self._meaning(repository, reference, None)
        except Unknown as error:
            await self._unknown(repository, reference, error)
            raise
        await self._remember(repository, reference, descriptor)
        return descriptor

    async def _meaning(self, repository: Repository, tag: Tag, known: TagRecord | None) -> Descriptor:
        """Returns what a tag means by upstream's word. `known` is what it meant last. Raises MirrorError."""

        async def is_older(offered: Digest) -> bool:
            return known is not None and await self._newest.is_older(repository, offered, known)

        source = self._source(repository.registry)
        answers = await source.tag_answers(repository, tag, None if known is None else known.descriptor.digest, is_older)
        found = await self._newest.choose(repository, tag, answers, known)
        if not self._newest.is_outdated(found, known):
            return found
        with asking_the_registry_only():
            return await self._meaning(repository, tag, known)

    async def _last_seen(self, repository: Repository, tag: Tag, record: TagRecord) -> TagRecord:
        """Returns what a tag meant at its registry last, which may be held back here."""
        if record.held_until is None or not (history := await self._store.history(repository, tag)):
            return record
        return TagRecord(history[-1].descriptor, record.checked)

    async def _unknown(self, repository: Repository, reference: Reference, error: Unknown) -> None:
        if not error.certain:
            return
        await self._negative.remember(key_of(repository, reference), error)
        if isinstance(reference, Tag):
            # The tag is gone. What is cached by digest stays.
            self._memory.pop((repository, reference), None)
            await self._store.drop_tag(repository, reference, self._clock())

    # ------------------------------------------------------------------ freshness

    def _fresh(self, record: TagRecord) -> bool:
        return is_fresh(record.checked, self._ttl, self._clock())

    async def _record(self, repository: Repository, tag: Tag) -> TagRecord | None:
        record = self._memory.get((repository, tag))
        if record is not None and self._fresh(record):
            return record
        # Another process may have checked it since.
        stored = await self._store.tag(repository, tag)
        if stored is not None and (record is None or stored.checked > record.checked):
            record = stored
            self._adopt(repository, tag, record)
        return record

    def _adopt(self, repository: Repository, tag: Tag, stored: TagRecord) -> None:
        """Remembers what another process may have learnt."""
        if self.guard is not None and self._memory.get((repository, tag)) != stored:
            self.guard.forget_tag(repository, tag)
        self._keep(repository, tag, stored)

    async def _remember(self, repository: Repository, tag: Tag, descriptor: Descriptor) -> None:
        self._held.pop((repository, tag), None)
        if self.guard is not None:
            await self._note(self.guard, repository, tag, descriptor)
            return
        record = TagRecord(descriptor, self._clock() - descriptor.age)
        self._keep(repository, tag, record)
        await self._store.set_tag(repository, tag, record)

    async def _note(self, guard: Guard, repository: Repository, tag: Tag, found: Descriptor) -> None:
        """Records what the registry says that a tag means. Until it is decided on, which may need other documents and so no lock, clients get what they got before."""
        now = self._clock() - found.age
        before = self._memory.get((repository, tag)) or await self._store.tag(repository, tag)
        await self._store.note_tag(repository, tag, found, now)
        if before is not None and before.held_until is None and before.descriptor.digest == found.digest:
            record = TagRecord(before.descriptor, now)
        else:
            guard.forget_tag(repository, tag)
            record = TagRecord(found if before is None else before.descriptor, now, math.inf)
        self._keep(repository, tag, record)
        await self._store.set_tag(repository, tag, record, seen=False)

    def _keep(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        self._memory[repository, tag] = record
        self._memory.move_to_end((repository, tag))
        if len(self._memory) > _MOST_IN_MEMORY:
            self._memory.popitem(last=False)

    async def _current(self, repository: Repository, tag: Tag, record: TagRecord, since: float) -> tuple[Descriptor, Outcome]:
        """Returns what a known tag means, or what it meant last if upstream does not answer in time. Raises Unknown if it is gone."""
        if self._fresh(record) or self._offline():
            return record.descriptor, HIT
        if time.monotonic() >= self._held.get((repository, tag), 0.0):
            ask = partial(self._check, repository, tag, record, since)
            check, _ = self._descriptors.start(self._key(repository, tag, "check"), ask)
            done, _ = await asyncio.wait([check], timeout=self._patience)
            if done:
                try:
                    return check.result(), VALIDATED
                except MirrorError as error:
                    if isinstance(error, Unknown) and error.certain:
                        raise
                    log.info("serving %s:%s stale: %s", repository, tag, error, extra={"cause": str(error)})
            self._hold(repository, tag)
        metrics.stale_served.labels(repository.registry).inc()
        return record.descriptor, STALE

    def _hold(self, repository: Repository, tag: Tag) -> None:
        if len(self._held) > _MOST_IN_MEMORY:
            self._held.clear()
        self._held[repository, tag] = time.monotonic() + min(_HOLD, self._ttl)

    async def _check(self, repository: Repository, tag: Tag, record: TagRecord, since: float) -> Descriptor:
        async with self._store.lock(Question.CHECK, self._key(repository, tag, "check")):
            if (stored := await self._stored_since(repository, tag, since)) is not None:
                return stored.descriptor
            return await self._check_now(repository, tag, record)

    async def _check_now(self, repository: Repository, tag: Tag, record: TagRecord) -> Descriptor:
        try:
            found = await self._meaning(repository, tag, await self._last_seen(repository, tag, record))
        except Unknown as error:
            await self._unknown(repository, tag, error)
            raise
        # What may be held back is not fetched yet.
        if (
            self.guard is None
            and found.digest != record.descriptor.digest
            and await self._store.manifest(record.descriptor.digest) is not None
        ):
            # The old one can still be served: it is given up only once the new one is here.
            try:
                await self._by_digest(repository, found.digest)
            except OF_ITS_DIGEST:
                # A lagging replica has a tag before its manifest. A 404 for the digest does not mean that the tag is gone; GET by tag decides.
                found = await self._got(repository, tag, record)
        await self._remember(repository, tag, found)
        if found.age >= self._ttl:  # Another mirror serves it stale.
            self._hold(repository, tag)
        return found

    async def _got(self, repository: Repository, tag: Tag, before: TagRecord | None) -> Descriptor:
        """Fetches the manifest that a tag means where what an endpoint named cannot be had. Raises MirrorError, and UpstreamInvalid rather than turn the tag back
        from what it meant `before`; None if that is not known."""

        async def is_older(offered: Digest) -> bool:
            return before is not None and await self._newest.is_older(repository, offered, before)

        source = self._source(repository.registry)
        try:
            if before is None:
                manifest = await source.get_manifest(repository, tag)
            else:
                manifest = await source.get_tag(repository, tag, before.descriptor.digest, is_older)
        except Unknown as error:
            raise UpstreamInvalid(
                f"{repository.registry} says of {repository.path}:{tag} now this and now that: {error.message}"
            ) from None
        await self._store.put_manifest(repository, manifest)
        return manifest.descriptor


async def _not_asked(repository: Repository, digest: Digest) -> bool:
    return True
