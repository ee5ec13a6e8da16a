"""Gathers what there is to know of what somebody wants, so that `decide` can decide."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mirror.cache.guarding import Archive
from mirror.errors import CatalogFailed, MirrorError
from mirror.guards.deciding import Facts, decide
from mirror.guards.images import describe
from mirror.guards.rules import Asked, Image, Rule
from mirror.guards.signatures import Signers, is_signature, is_signed
from mirror.guards.sources import Documents, WithArchive
from mirror.manifests import Manifest, children_of, entries_of
from mirror.names import Digest, Repository, Tag
from mirror.storage.scans import scan_results, worse
from mirror.storage.sightings import Sighting
from mirror.storage.store import Store

log = logging.getLogger(__name__)

_MOST_NAMED = 20_000
"""Digests that a manifest names, all the way down, that are looked at."""
_DEEPEST = 3
"""Levels from a layer up to an index."""


class FactFinder:
    """Asks the store, and upstream for configurations and signatures; only for what a rule wants to know."""

    def __init__(self, store: Store, documents: Documents, signed: set[tuple[Signers, Digest]] | None = None) -> None:
        """`signed` is what was found to be signed, and by one of whom."""
        self._store = store
        self._documents = documents
        self._signed = set() if signed is None else signed

    def beside(self, archive: Archive) -> FactFinder:
        """Returns one that knows what an archive brings, too."""
        return FactFinder(self._store, WithArchive(self._documents, archive), self._signed)

    async def of_digest(self, rules: Sequence[Rule], asked: Asked, manifest: Manifest | None) -> Facts:
        """Gathers what there is to know of a manifest by its digest; `manifest` is it, if it is at hand."""
        digest = asked.digest
        tags = await self._store.tags_of(asked.repository, digest) if any(rule.has_tag_pattern for rule in rules) else ()
        names = await self._names(rules, [digest], manifest)
        images = await self._images(rules, asked, [digest], tags)
        severities = await self._severities(rules, asked, [digest], manifest)
        return Facts((), tags, names, images, severities=severities, held=await self.is_held(rules, asked.repository, digest))

    async def of_tag(self, rules: Sequence[Rule], asked: Asked, history: Sequence[Sighting], now: float) -> Facts:
        """Gathers what there is to know of what a tag means, and of what it meant before only as far back as is needed: signatures are asked for upstream."""
        facts = Facts(history, (), {}, {}, {})
        known: set[Digest] = set()
        missing = {asked.digest}
        if served := [one for one in history if one.served is not None and any(rule.refuse_older for rule in rules)]:
            missing.add(max(served, key=lambda one: one.served or 0.0).digest)
        while missing:
            facts = replace(
                facts,
                names={**facts.names, **await self._names(rules, missing)},
                images={**facts.images, **await self._images(rules, asked, missing)},
                unsigned={**facts.unsigned, **await self._unsigned(rules, asked, missing)},
                severities={**facts.severities, **await self._severities(rules, asked, missing)},
            )
            known |= missing
            serve = decide(rules, asked, facts, now).serve
            missing = set() if serve is None else {serve.digest} - known
        return facts

    async def _names(
        self, rules: Sequence[Rule], digests: Iterable[Digest], read: Manifest | None = None
    ) -> dict[Digest, set[Digest]]:
        """What manifests name, all the way down, as far as they are cached; `read` is one that is at hand."""
        if not any(rule.blocked for rule in rules):
            return {}
        found: dict[Digest, set[Digest]] = {}
        for digest in digests:
            named: set[Digest] = set()
            waiting = [digest]
            while waiting and len(named) < _MOST_NAMED:
                one = waiting.pop()
                manifest = read if read is not None and read.digest == one else await self._documents.cached(one)
                if manifest is not None:
                    manifests, blobs = children_of(manifest.body)
                    waiting += [child for child in manifests if child not in named]
                    named.update(manifests, blobs)
            found[digest] = named
        return found

    async def _images(
        self, rules: Sequence[Rule], asked: Asked, digests: Iterable[Digest], tags: Sequence[str] = ()
    ) -> dict[Digest, Image]:
        """What images are like, as far as their manifests are cached; only if a rule wants to know."""
        known_by = tags if asked.tag is None else (asked.tag,)
        if not any(rule.needs_image and rule.fits(asked.repository, known_by) for rule in rules):
            return {}
        found = {}
        for digest in digests:
            if (manifest := await self._documents.cached(digest)) is not None:
                try:
                    configuration = await self._documents.configuration(asked.repository, manifest)
                except MirrorError as error:
                    log.info("the configuration of %s cannot be had: %s", digest, error)
                    configuration = b""
                found[digest] = describe(manifest, configuration)
        return found

    async def _severities(
        self, rules: Sequence[Rule], asked: Asked, digests: Iterable[Digest], read: Manifest | None = None
    ) -> dict[Digest, str]:
        """The worst that scanners have found in images, and in what indexes list."""
        if not any(rule.max_severity is not None for rule in rules):
            return {}
        found = {}
        for digest in digests:
            manifest = read if read is not None and read.digest == digest else await self._documents.cached(digest)
            listed = () if manifest is None else [entry.descriptor.digest for entry in entries_of(manifest.body)]
            results = [result for one in (digest, *listed) for result in await scan_results(self._store, one)]
            if (worst := worse([result.worst for result in results if result.worst is not None])) is not None:
                found[digest] = worst
        return found

    async def _unsigned(self, rules: Sequence[Rule], asked: Asked, digests: Iterable[Digest]) -> dict[tuple[str, Digest], str]:
        """Why rules do not find manifests signed. What was found signed stays so: neither the signers of a rule nor what a digest names ever changes."""
        found: dict[tuple[str, Digest], str] = {}
        for rule in rules:
            if (
                rule.signed is None
                or asked.tag is None
                or is_signature(asked.tag)
                or not rule.fits(asked.repository, (asked.tag,))
            ):
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

    async def is_held(self, rules: Sequence[Rule], repository: Repository, digest: Digest) -> bool:
        """Returns whether something belongs to nothing but what is held back in a repository."""
        if not any(rule.strict for rule in rules):
            return False
        try:
            held = {tag.new for tag in await self._store.held(repository)}
        except CatalogFailed:
            return False
        held = {new for new in held if not await self._is_served(repository, new)}
        return bool(held) and await self._belongs_to(digest, held, _DEEPEST)

    async def _is_served(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether another tag means a digest, and clients get it by that."""
        records = [await self._store.tag(repository, Tag(tag)) for tag in await self._store.tags(repository, digest)]
        return any(record is not None and record.held_until is None for record in records)

    async def _belongs_to(self, digest: Digest, roots: set[Digest], levels: int) -> bool:
        if digest in roots:
            return True
        parents = await self._store.naming(digest, 0.0) if levels else []
        for parent in parents:
            if not await self._belongs_to(parent, roots, levels - 1):
                return False
        return bool(parents)
