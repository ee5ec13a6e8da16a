"""Gathers what there is to know of what somebody wants, so that `decide` can decide."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mirror.cache.guarding import Archive
from mirror.errors import MirrorError
from mirror.guards.children import Child, Children
from mirror.guards.deciding import Facts, decide
from mirror.guards.held_back import HeldBack
from mirror.guards.images import describe
from mirror.guards.rules import Asked, Rule
from mirror.guards.signatures import Signers, is_signature, is_signed
from mirror.guards.sources import Documents, WithArchive
from mirror.manifests import MAX_SIZE, Manifest, children_of, entries_of
from mirror.names import Digest, Repository
from mirror.storage.scans import scan_results, worse
from mirror.storage.sightings import Sighting
from mirror.storage.store import Store

log = logging.getLogger(__name__)

_MOST_NAMED = 20_000
"""Digests that a manifest names, all the way down, that are looked at."""
_MOST_PARSED = MAX_SIZE
"""Bytes of the configurations of an index's images: to parse some MiB may take a second, in which nobody is answered."""


class FactFinder:
    """Asks the store, and upstream for configurations and signatures; only for what a rule wants to know."""

    def __init__(
        self,
        store: Store,
        documents: Documents,
        signed: set[tuple[Signers, Digest]] | None = None,
        children: Children | None = None,
    ) -> None:
        """`signed` is what was found to be signed, and by one of whom; `children` reads what indexes name."""
        self._store = store
        self._documents = documents
        self._signed = set() if signed is None else signed
        self._children = Children(documents) if children is None else children
        self._held_back = HeldBack(store, self._children)

    def beside(self, archive: Archive) -> FactFinder:
        """Returns one that knows what an archive brings, too."""
        documents = WithArchive(self._documents, archive)
        return FactFinder(self._store, documents, self._signed, self._children.beside(documents))

    async def of_digest(self, rules: Sequence[Rule], asked: Asked, manifest: Manifest | None) -> Facts:
        """Gathers what there is to know of a manifest by its digest; `manifest` is it, if it is at hand."""
        digest = asked.digest
        tags = await self._store.tags_of(asked.repository, digest) if any(rule.has_tag_pattern for rule in rules) else ()
        facts = await self.of_blob(rules, asked.repository, digest)
        facts = replace(facts, tags=(*tags, *facts.tags))
        return await self._with(facts, rules, asked, [digest], manifest)

    async def of_blob(self, rules: Sequence[Rule], repository: Repository, digest: Digest) -> Facts:
        """Gathers what there is to know of a blob."""
        held_by = await self._held_back.tags_of(rules, repository, digest)
        return Facts(tags=held_by, held=bool(held_by))

    async def of_tag(self, rules: Sequence[Rule], asked: Asked, history: Sequence[Sighting], now: float) -> Facts:
        """Gathers what there is to know of what a tag means, and of what it meant before only as far back as is needed: documents are asked for upstream."""
        facts = Facts(history)
        known: set[Digest] = set()
        missing = {asked.digest}
        if served := [one for one in history if one.served is not None and any(rule.refuse_older for rule in rules)]:
            missing.add(max(served, key=lambda one: one.served or 0.0).digest)
        while missing:
            facts = await self._with(facts, rules, asked, missing)
            known |= missing
            serve = decide(rules, asked, facts, now).serve
            missing = set() if serve is None else {serve.digest} - known
        return facts

    async def _with(
        self, facts: Facts, rules: Sequence[Rule], asked: Asked, digests: Iterable[Digest], read: Manifest | None = None
    ) -> Facts:
        """Returns `facts` with what there is to know of some manifests, as far as these are cached; `read` is one that is at hand."""
        tags = facts.tags if asked.tag is None else (asked.tag,)
        rules = [rule for rule in rules if rule.fits(asked.repository, tags)]
        names, images = dict(facts.names), dict(facts.images)
        children, severities = dict(facts.children), dict(facts.severities)
        again = facts.again
        needs_images, blocks = any(rule.needs_image for rule in rules), any(rule.blocked for rule in rules)
        for digest in digests:
            manifest = read if read is not None and read.digest == digest else await self._documents.cached(digest)
            listed: list[Child] = []
            if manifest is not None and (needs_images or blocks) and entries_of(manifest.body):
                listed, seconds = await self._children.read(asked.repository, manifest, configurations=needs_images)
                again = min(again, seconds)
            if manifest is not None and needs_images:
                images[digest] = describe(manifest, await self._configuration(asked, manifest))
                room = _MOST_PARSED
                for one in sorted(listed, key=lambda one: len(one.configuration)):
                    room -= len(one.configuration)
                    configuration = one.configuration if room >= 0 else b""
                    images[one.manifest.digest] = describe(one.manifest, configuration, one.platform)
                children[digest] = [one.manifest.digest for one in listed]
            if blocks:
                names[digest] = await self._names(digest, manifest)
            if any(rule.max_severity is not None for rule in rules) and (worst := await self._severity(digest, manifest)):
                severities[digest] = worst
        unsigned = {**facts.unsigned, **await self._unsigned(rules, asked, digests)}
        return replace(
            facts, names=names, images=images, children=children, severities=severities, unsigned=unsigned, again=again
        )

    async def _configuration(self, asked: Asked, manifest: Manifest) -> bytes:
        try:
            return await self._documents.configuration(asked.repository, manifest)
        except MirrorError as error:
            log.info("the configuration of %s cannot be had: %s", manifest.digest, error)
            return b""

    async def _names(self, digest: Digest, read: Manifest | None) -> set[Digest]:
        """What a manifest names, all the way down, as far as it is cached; `read` is it, if it is at hand."""
        named: set[Digest] = set()
        waiting = [digest]
        while waiting and len(named) < _MOST_NAMED:
            one = waiting.pop()
            manifest = read if read is not None and read.digest == one else await self._documents.cached(one)
            if manifest is not None:
                manifests, blobs = children_of(manifest.body)
                # Once each, however often it is listed: all of it may be read anew for each time that it is.
                waiting += set(manifests) - named
                named.update(manifests, blobs)
        return named

    async def _severity(self, digest: Digest, manifest: Manifest | None) -> str | None:
        """The worst that scanners have found in an image, and in what an index lists; None if none has looked at it."""
        listed = () if manifest is None else [entry.descriptor.digest for entry in entries_of(manifest.body)]
        results = [result for one in dict.fromkeys((digest, *listed)) for result in await scan_results(self._store, one)]
        return worse([result.worst for result in results if result.worst is not None])

    async def _unsigned(self, rules: Sequence[Rule], asked: Asked, digests: Iterable[Digest]) -> dict[tuple[str, Digest], str]:
        """Why rules do not find manifests signed. What was found signed stays so: neither the signers of a rule nor what a digest names ever changes."""
        found: dict[tuple[str, Digest], str] = {}
        for rule in rules:
            if rule.signed is None or asked.tag is None or is_signature(asked.tag):
                continue
            for digest in digests:
                if (rule.signed, digest) in self._signed:
                    continue
                try:
                    if await is_signed(rule.signed, self._documents, asked.repository, digest):
                        self._signed.add((rule.signed, digest))
                        continue
                    found[rule.name, digest] = "it has no signature by the keys or identities that are required"
                except MirrorError as error:
                    found[rule.name, digest] = f"its signatures cannot be read: {error.message}"
        return found
