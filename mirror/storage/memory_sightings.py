"""The history of tags in memory, and what was decided by hand: see `mirror.storage.store.Store`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from mirror import metrics
from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.sightings import MOST_RULINGS, PUSHED_BY, Block, HeldTag, Move, Released, Ruled, Sighting
from mirror.storage.store import TagRecord


class MemorySightings:
    """Implements the part of `Store` that concerns what tags have meant."""

    def __init__(self) -> None:
        super().__init__()
        self._tags: dict[tuple[Repository, str], TagRecord] = {}
        self._sightings: dict[tuple[Repository, Tag], list[Sighting]] = {}
        self._moves: list[Move] = []
        self._blocks: dict[Digest, Block] = {}
        self._rulings: dict[tuple[str, str, Repository, Reference], Ruled] = {}

    def _note(self, repository: Repository, tag: Tag, found: Descriptor, when: float, *, served: bool) -> None:
        known = self._sightings.setdefault((repository, tag), [])
        since = when if served else None
        if known and known[-1].digest == found.digest and known[-1].gone is None:
            latest = known[-1]
            known[-1] = replace(latest, last=max(latest.last, when), served=since if latest.served is None else latest.served)
            return
        if known and known[-1].digest != found.digest:
            back = any(sighting.digest == found.digest for sighting in known)
            if not found.endpoint.startswith(PUSHED_BY):
                metrics.tag_moves.labels(repository.registry).inc()
                self._moves.append(Move(repository, tag, known[-1].digest, found.digest, when, back))
        known.append(Sighting(found, when, when, since))

    def _note_served(self, repository: Repository, tag: Tag, record: TagRecord, seen: bool) -> None:
        known = self._sightings.get((repository, tag), [])
        if seen:
            self._note(repository, tag, record.descriptor, record.checked, served=True)
        elif record.held_until is None and known and known[-1].digest == record.descriptor.digest:
            served = known[-1].served
            known[-1] = replace(known[-1], served=record.checked if served is None else served)

    def _note_gone(self, repository: Repository, tag: Tag, when: float) -> None:
        known = self._sightings.get((repository, tag))
        if known and known[-1].gone is None:
            known[-1] = replace(known[-1], gone=when)

    async def drop_tag(self, repository: Repository, tag: Tag, gone: float | None = None) -> None:
        self._tags.pop((repository, tag.value), None)
        if gone is not None:
            self._note_gone(repository, tag, gone)

    async def note_tag(self, repository: Repository, tag: Tag, found: Descriptor, when: float) -> None:
        self._note(repository, tag, found, when, served=False)

    async def history(self, repository: Repository, tag: Tag) -> list[Sighting]:
        return list(self._sightings.get((repository, tag), ()))

    async def first_seen(self, tags: Sequence[tuple[Repository, Tag, Digest]]) -> list[float | None]:
        return [self._first_seen(*asked) for asked in tags]

    def _first_seen(self, repository: Repository, tag: Tag, digest: Digest) -> float | None:
        for sighting in self._sightings.get((repository, tag), ()):
            if sighting.digest == digest:
                return sighting.first
        record = self._tags.get((repository, tag.value))
        return record.checked if record is not None and record.descriptor.digest == digest else None

    async def tags_of(self, repository: Repository, digest: Digest) -> list[str]:
        return [
            tag.value
            for (holder, tag), known in self._sightings.items()
            if holder == repository and any(sighting.digest == digest for sighting in known)
        ]

    async def moves(self, count: int) -> list[Move]:
        return self._moves[::-1][:count]

    async def held(self, repository: Repository | None = None) -> list[HeldTag]:
        found = []
        for (holder, tag), record in self._tags.items():
            if record.held_until is not None and repository in (None, holder):
                known = self._sightings[holder, Tag(tag)]
                latest = known[-1]
                served: Digest | None = record.descriptor.digest
                if served == latest.digest:
                    # A hosted tag means what is held back.
                    before = [one for one in known if one.served is not None]
                    served = max(before, key=lambda one: one.served or 0.0).digest if before else None
                released = latest.released is not None
                found.append(HeldTag(holder, Tag(tag), served, latest.digest, latest.first, record.held_until, released))
        return sorted(found, key=lambda held: held.until)

    def _held_content(self) -> list[Digest]:
        """What is held back, and what is served in place of it."""
        found = []
        for (holder, tag), record in self._tags.items():
            if record.held_until is not None:
                found += [record.descriptor.digest, *(seen.digest for seen in self._sightings.get((holder, Tag(tag)), ())[-1:])]
        return found

    async def release(self, repository: Repository, tag: Tag, released: Released, only: Digest | None = None) -> Digest | None:
        known = self._sightings.get((repository, tag))
        if not known or known[-1].gone is not None or only not in (None, known[-1].digest):
            return None
        known[-1] = replace(known[-1], released=released)
        record = self._tags.get((repository, tag.value))
        if record is not None and record.held_until is not None and record.descriptor.digest != known[-1].digest:
            self._tags[repository, tag.value] = replace(record, checked=0.0)
        return known[-1].digest

    async def blocks(self) -> list[Block]:
        return list(self._blocks.values())

    async def block(self, block: Block) -> None:
        self._blocks[block.digest] = block

    async def unblock(self, digest: Digest) -> bool:
        return self._blocks.pop(digest, None) is not None

    def count_ruling(self, rule: str, verdict: str, repository: Repository, reference: Reference, reason: str) -> None:
        key = rule, verdict, repository, reference
        known = self._rulings.pop(key, None)
        if len(self._rulings) >= MOST_RULINGS:
            del self._rulings[next(iter(self._rulings))]
        self._rulings[key] = Ruled(*key, 1 if known is None else known.count + 1, time.time(), reason)

    async def rulings(self, count: int) -> list[Ruled]:
        return list(self._rulings.values())[::-1][:count]
