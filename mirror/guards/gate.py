"""The gate through which all content goes: it gathers the facts, has `decide` decide, and remembers what it decided until facts or rules change."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from mirror import metrics
from mirror.cache.guarding import BY_HAND, Archive, Guarded, Ruling, refusal, verdict_header
from mirror.errors import CatalogFailed
from mirror.guards.deciding import Facts, decide
from mirror.guards.facts import FactFinder
from mirror.guards.rules import Asked, Decision, Finding, Rule
from mirror.guards.signatures import Signers
from mirror.guards.sources import Documents, FromCache
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.sightings import Released, Sighting
from mirror.storage.store import Store

log = logging.getLogger(__name__)

_MOST = 50_000
_TAGS_KNOWN = 1.0
"""Seconds for which a decision on a digest counts that depends on what tags mean."""


class Gate:
    """Implements `mirror.cache.guarding.Guard`."""

    def __init__(self, store: Store, documents: Documents, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        signed: set[tuple[Signers, Digest]] = set()
        self._finder = FactFinder(store, documents, signed)
        self._asking_nobody = FactFinder(store, FromCache(store), signed)
        self._clock = clock
        self._tables: Sequence[Rule] = ()
        self._rules: Sequence[Rule] = ()
        self._by_hand: Mapping[str, str] = {}
        self._released: set[Released] = set()
        """Releases that the log has."""
        self.epoch = 0
        """Changes when something is forgotten; what was decided on older facts is not remembered."""
        self.revision = 0
        """Changes with the rules and what they block."""
        self._passed_blobs: set[tuple[Repository, Digest]] = set()
        """Blobs that may be served as long as the rules are the same."""
        self._passed: dict[tuple[Repository, Reference], Digest] = {}
        """References of which it is known that they get what they ask for, whenever that is."""
        self._known: OrderedDict[tuple[Repository, Reference], tuple[Ruling, float]] = OrderedDict()
        """Rulings, and until when each counts."""

    @property
    def active(self) -> bool:
        """False if there is nothing to decide by."""
        return bool(self._rules)

    def take(self, rules: Sequence[Rule]) -> None:
        """Decides by other rules from now on."""
        self._tables = rules
        self.forget()

    async def load(self) -> None:
        """Reads what was blocked by hand, and forgets what it decided. If the catalog fails, what it knew stays."""
        try:
            self._by_hand = {block.digest.hex: block.reason for block in await self._store.blocks()}
        except CatalogFailed as error:
            log.warning("what was blocked by hand cannot be read: %s", error)
        self.forget()

    def forget(self) -> None:
        """Forgets what it decided: facts or rules have changed."""
        by_hand = (Rule(BY_HAND, blocked=self._by_hand),) if self._by_hand else ()
        self._rules = (*by_hand, *self._tables)
        for rule in self._rules:
            # Prometheus' `increase` misses a counter's first event otherwise.
            for check in rule.checks:
                for verdict in ("held", "refused") if rule.enforced else ("would-hold", "would-refuse"):
                    metrics.guarded.labels(rule.name, check, verdict)
        self._passed.clear()
        self._known.clear()
        self._passed_blobs.clear()
        self.epoch += 1
        self.revision += 1

    # ------------------------------------------------------------------ decisions

    def passes(self, repository: Repository, reference: Reference, digest: Digest) -> bool:
        passed = self._passed.get((repository, reference))
        # Most often it is the same object, and to compare takes a quarter of a microsecond.
        return passed is digest or passed == digest

    async def rule_tag(
        self, repository: Repository, tag: Tag, found: Descriptor, lost: frozenset[Digest] = frozenset()
    ) -> Ruling:
        now = self._clock()
        if not lost and (known := self._remembered(repository, tag, now)) is not None:
            return known
        for _ in range(2):
            epoch = self.epoch
            history = await self._history(repository, tag) or [Sighting(found, now, now)]
            asked = Asked(repository, tag.value, history[-1].digest, self._store.hosted.covers(repository), lost)
            facts = await self._finder.of_tag(self._rules, asked, history, now)
            if epoch == self.epoch:
                break
            # Most often because the tag of a signature was learnt by that. Then it is known now, and what is decided can be remembered.
        return await self._ruled(asked, tag, facts, now, epoch)

    async def _history(self, repository: Repository, tag: Tag) -> list[Sighting]:
        history = await self._store.history(repository, tag)
        record = await self._store.tag(repository, tag) if self._store.hosted.covers(repository) else None
        if record is not None and (not history or history[-1].digest != record.descriptor.digest):
            # It was pushed before pushes were recorded.
            history.append(Sighting(record.descriptor, record.checked, record.checked, record.checked))
        return history

    async def rule_digest(self, repository: Repository, digest: Digest, manifest: Manifest | None) -> Ruling:
        now = self._clock()
        if (known := self._remembered(repository, digest, now)) is not None:
            return known
        epoch = self.epoch
        asked = Asked(repository, None, digest, self._store.hosted.covers(repository))
        return await self._ruled(asked, digest, await self._finder.of_digest(self._rules, asked, manifest), now, epoch)

    async def foresee(self, repository: Repository, reference: Reference, root: Descriptor, archive: Archive | None) -> Ruling:
        now, hosted = self._clock(), self._store.hosted.covers(repository)
        finder = self._finder if archive is None else self._finder.beside(archive)
        if isinstance(reference, Digest):
            asked = Asked(repository, None, reference, hosted)
            facts = await finder.of_digest(self._rules, asked, None)
        else:
            asked = Asked(repository, reference.value, root.digest, hosted)
            history = await self._history(repository, reference)
            if not history or history[-1].digest != root.digest or history[-1].gone is not None:
                history = [*history, Sighting(root, now, now)]
            facts = await finder.of_tag(self._rules, asked, history, now)
        return self._ruling(asked, decide(self._rules, asked, facts, now))

    async def explain(self, repository: Repository, tag: Tag) -> Ruling:
        now = self._clock()
        history = await self._history(repository, tag)
        if not history:
            return Ruling(None, None, None)
        asked = Asked(repository, tag.value, history[-1].digest, self._store.hosted.covers(repository))
        facts = await self._asking_nobody.of_tag(self._rules, asked, history, now)
        return self._ruling(asked, decide(self._rules, asked, facts, now))

    def forget_tag(self, repository: Repository, tag: Tag) -> None:
        if self._depends_on_tags:
            self.forget_repository(repository)
        self._known.pop((repository, tag), None)
        self._passed.pop((repository, tag), None)
        self.epoch += 1

    async def check_blob(self, repository: Repository, digest: Digest) -> None:
        if (repository, digest) in self._passed_blobs:
            return
        revision = self.revision
        asked = Asked(repository, None, digest, self._store.hosted.covers(repository))
        facts = await self._finder.of_blob(self._rules, repository, digest)
        ruling = self._ruling(asked, decide(self._rules, asked, facts, self._clock()))
        self.count(repository, digest, ruling)
        if ruling.error is not None:
            raise ruling.error
        # What is held back by what tags mean may change at any time.
        if not ruling.verdicts and revision == self.revision and not any(rule.strict for rule in self._rules):
            if len(self._passed_blobs) >= _MOST:
                self._passed_blobs.clear()
            self._passed_blobs.add((repository, digest))

    def blocks(self, repository: Repository, digest: Digest) -> Guarded | None:
        asked = Asked(repository, None, digest, self._store.hosted.covers(repository))
        return self._ruling(asked, decide(self._rules, asked, Facts(), self._clock())).error

    async def _ruled(self, asked: Asked, reference: Reference, facts: Facts, now: float, epoch: int) -> Ruling:
        decision = decide(self._rules, asked, facts, now)
        if decision.serve is None and asked.tag is None:
            # What names it may have been let through before it was read.
            changed = self.epoch - epoch
            self.forget_repository(asked.repository)
            epoch = self.epoch - changed
        complete = decision.serve is None or not self._reads or await self._store.manifest(decision.serve.digest) is not None
        ruling = self._ruling(asked, decision, complete=complete)
        released = facts.history[-1].released if facts.history and ruling.held_until is None else None
        if released is not None and released not in self._released:
            self._released.add(released)
            log.warning(
                "%s:%s means %s: %s released it: %s", asked.repository, asked.tag, asked.digest, released.who, released.why
            )
        if complete and epoch == self.epoch and (decision.finding is None or decision.finding.rule):
            key = asked.repository, reference
            until = min(decision.until, now + _TAGS_KNOWN) if asked.tag is None and self._depends_on_tags else decision.until
            # Without what is lost it is decided anew each time: it may be found again.
            self._known[key] = ruling, 0.0 if asked.lost else until
            if len(self._known) > _MOST:
                self._passed.pop(self._known.popitem(last=False)[0], None)
            if decision.finding is None and not decision.observed and until == math.inf and not asked.lost:
                self._passed[key] = asked.digest
        return ruling

    @property
    def _depends_on_tags(self) -> bool:
        """True if digests are decided on by what tags mean, which other processes learn too."""
        return any(rule.strict or rule.has_tag_pattern for rule in self._rules)

    @property
    def _reads(self) -> bool:
        """True if manifests have to be read to decide."""
        return any(rule.blocked or rule.needs_image or rule.max_severity is not None for rule in self._rules)

    def _remembered(self, repository: Repository, reference: Reference, now: float) -> Ruling | None:
        ruling, until = self._known.get((repository, reference), (None, 0.0))
        return ruling if now < until else None

    def forget_repository(self, repository: Repository) -> None:
        for key in [key for key in self._known if key[0] == repository]:
            del self._known[key]
            self._passed.pop(key, None)
        self.epoch += 1

    # ------------------------------------------------------------------ for people

    def _ruling(self, asked: Asked, decision: Decision, *, complete: bool = True) -> Ruling:
        finding, serve = decision.finding, decision.serve
        headers = []
        error = None
        if serve is None:
            assert finding is not None
            reference = asked.tag if asked.tag is not None else str(asked.digest)
            name = f"{asked.repository}{'@' if asked.tag is None else ':'}{reference}"
            error = refusal(name, finding.rule, finding.reason, asked.digest)
        elif finding is not None:
            until = f"; until={_date(finding.until)}" if finding.is_wait and finding.until < math.inf else ""
            headers.append(("Mirror-Tag", f"held; new={asked.digest}{until}"))
        if finding is not None:
            headers.append(("Mirror-Guard", _header(finding, "refused" if serve is None else "held")))
        headers += [("Mirror-Guard", _header(one, _would(one))) for one in decision.observed]
        joined: dict[str, str] = {}
        for name, value in headers:
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
        verdicts = []
        if finding is not None:
            verdicts.append((finding.rule, "refused" if serve is None else "held", finding.reason, finding.check))
        verdicts += [(one.rule, _would(one), one.reason, one.check) for one in decision.observed]
        held_until = None if finding is None else finding.until if finding.is_wait else math.inf
        may_pass = finding is not None and finding.may_pass
        return Ruling(serve, error, held_until, tuple(joined.items()), complete, tuple(verdicts), may_pass)

    def count(self, repository: Repository, reference: Reference, ruling: Ruling) -> None:
        for rule, verdict, reason, check in ruling.verdicts:
            metrics.guarded.labels(rule, check, verdict).inc()
            self._store.count_ruling(rule, verdict, repository, reference, reason)
            log.info("guard %s: %s: %s: %s", rule, image_name(repository, reference), verdict, reason)

    def headers(self, repository: Repository, reference: Reference) -> tuple[tuple[str, str], ...]:
        ruling, _ = self._known.get((repository, reference), (None, 0.0))
        return () if ruling is None else ruling.headers


def _would(finding: Finding) -> str:
    return "would-hold" if finding.is_wait else "would-refuse"


def _header(finding: Finding, verdict: str) -> str:
    return verdict_header(finding.rule, verdict, finding.reason)


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
