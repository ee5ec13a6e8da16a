"""What tags have meant, and what was blocked or released by hand. Queries that run in the catalog's thread.

A row of ``sighting`` is a time in which a tag meant one digest. It is kept when the content goes, and when the tag is deleted.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Mapping

from mirror import metrics
from mirror.events import Action, Event, Events
from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository, Tag, parse_reference
from mirror.storage.sightings import MOST_RULINGS, PUSHED_BY, Block, HeldTag, Move, Released, Ruled, Sighting
from mirror.storage.store import TagRecord

log = logging.getLogger(__name__)

_LATEST = "SELECT max(id) FROM sighting WHERE registry = ?1 AND path = ?2 AND tag = ?3"
_RULINGS_KEPT = 30 * 86400.0
_NEWS = 3600.0
"""Seconds without a ruling after which the same one is told again."""
_MOST = 1000
"""Sightings of one tag that are returned: the latest, and as many of those that were served."""


class Sightings:
    """Each method that changes something belongs to the transaction that is open, unless it says otherwise."""

    def __init__(self, db: sqlite3.Connection, events: Events) -> None:
        self._db = db
        self._events = events

    def note(self, repository: Repository, tag: str, found: Descriptor, when: float, *, served: bool) -> None:
        """Records that a tag means `found`; `served` if clients get it."""
        place = repository.registry, repository.path, tag
        continued = self._db.execute(
            f"UPDATE sighting SET last = max(last, ?5), served = coalesce(served, ?6)"  # noqa: S608
            f" WHERE id = ({_LATEST}) AND digest = ?4 AND gone IS NULL",
            (*place, str(found.digest), when, when if served else None),
        )
        if continued.rowcount:
            return
        before = self._db.execute(f"SELECT digest FROM sighting WHERE id = ({_LATEST})", place).fetchone()  # noqa: S608
        self._db.execute(
            "INSERT INTO sighting (registry, path, tag, digest, media_type, size, first, last, endpoint, served)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9)",
            (*place, str(found.digest), found.media_type, found.size, when, found.endpoint, when if served else None),
        )
        # A push is nothing that a registry did behind one's back.
        if before is not None and before[0] != str(found.digest) and not found.endpoint.startswith(PUSHED_BY):
            metrics.tag_moves.labels(repository.registry).inc()
            log.info("%s:%s moved from %s to %s", repository, tag, before[0], found.digest)
            self._events.send(
                Event(
                    Action.TAG_MOVED,
                    repository,
                    tag=tag,
                    digest=found.digest,
                    media_type=found.media_type,
                    size=found.size,
                    details={"before": before[0], "endpoint": found.endpoint, "served": served},
                )
            )

    def note_seen(self, repository: Repository, tag: str, found: Descriptor, when: float) -> None:
        """See `Store.note_tag`. A transaction of its own."""
        with self._db:
            self.note(repository, tag, found, when, served=False)

    def note_served(self, repository: Repository, tag: str, record: TagRecord, seen: bool) -> None:
        """Records what clients get, and whether something is held back; that the tag means it too, if that was `seen`."""
        place = repository.registry, repository.path, tag
        if record.held_until is None:
            self._db.execute("DELETE FROM held WHERE registry = ? AND path = ? AND tag = ?", place)
        else:
            self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)", (*place, record.held_until))
        if seen:
            self.note(repository, tag, record.descriptor, record.checked, served=True)
        elif record.held_until is None:
            self._db.execute(
                f"UPDATE sighting SET served = coalesce(served, ?5) WHERE id = ({_LATEST}) AND digest = ?4",  # noqa: S608
                (*place, str(record.descriptor.digest), record.checked),
            )

    def note_pushed(self, repository: Repository, tag: str, pushed: Descriptor, when: float, *, served: bool) -> None:
        """Records that a tag of a hosted repository is about to mean what was pushed; `served` if clients get it at once."""
        place = repository.registry, repository.path, tag
        before = self._db.execute(
            "SELECT digest, media_type, size, checked FROM tag WHERE registry = ? AND path = ? AND tag = ?", place
        ).fetchone()
        latest = self._db.execute(f"SELECT digest FROM sighting WHERE id = ({_LATEST})", place).fetchone()  # noqa: S608
        if before is not None and before[0] != str(pushed.digest) and latest != before[:1]:
            # It was pushed before pushes were recorded.
            digest, media_type, size, checked = before
            self.note(repository, tag, Descriptor(media_type, Digest.parse(digest), size, PUSHED_BY), checked, served=True)
        self.note(repository, tag, pushed, when, served=served)

    def note_ruled(self, repository: Repository, tag: str, pushed: Digest, when: float, held_until: float | None) -> None:
        """See `HostedStore.note_ruled`. A transaction of its own."""
        place = repository.registry, repository.path, tag
        with self._db:
            if held_until is not None:
                self._db.execute(
                    "INSERT OR REPLACE INTO held SELECT registry, path, tag, ?5 FROM tag"
                    " WHERE registry = ?1 AND path = ?2 AND tag = ?3 AND digest = ?4",
                    (*place, str(pushed), held_until),
                )
                return
            self._db.execute("DELETE FROM held WHERE registry = ? AND path = ? AND tag = ?", place)
            self._db.execute(
                f"UPDATE sighting SET served = ?5 WHERE id = ({_LATEST}) AND digest = ?4 AND served IS NULL",  # noqa: S608
                (*place, str(pushed), when),
            )

    def note_gone(self, repository: Repository, tag: str, when: float) -> None:
        """Records that there is no such tag any more."""
        self._db.execute(
            f"UPDATE sighting SET gone = ?4 WHERE id = ({_LATEST}) AND gone IS NULL",  # noqa: S608
            (repository.registry, repository.path, tag, when),
        )

    def of_tag(self, repository: Repository, tag: str) -> list[Sighting]:
        """See `Store.history`."""
        rows = self._db.execute(
            "SELECT media_type, digest, size, first, last, endpoint, served, gone, released, released_by, reason FROM sighting"
            " WHERE id IN (SELECT id FROM sighting WHERE registry = ?1 AND path = ?2 AND tag = ?3 ORDER BY id DESC LIMIT ?4)"
            # However often a tag moves to what nobody gets, what it meant before is known.
            " OR id IN (SELECT id FROM sighting WHERE registry = ?1 AND path = ?2 AND tag = ?3 AND served IS NOT NULL ORDER BY id DESC LIMIT ?4)"
            " OR id = (SELECT min(id) FROM sighting WHERE registry = ?1 AND path = ?2 AND tag = ?3 AND served IS NOT NULL) ORDER BY id",
            (repository.registry, repository.path, tag, _MOST),
        ).fetchall()
        return [_sighting(*row) for row in rows]

    def first_seen(self, tags: Iterable[tuple[Repository, Tag, Digest]]) -> list[float | None]:
        """See `Store.first_seen`."""
        query = (
            "SELECT coalesce((SELECT first FROM sighting WHERE registry = ?1 AND path = ?2 AND tag = ?3 AND digest = ?4 ORDER BY id LIMIT 1),"
            " (SELECT checked FROM tag JOIN hosted USING (registry, path, digest) WHERE registry = ?1 AND path = ?2 AND tag = ?3 AND digest = ?4))"
        )
        return [
            self._db.execute(query, (repository.registry, repository.path, tag.value, str(digest))).fetchone()[0]
            for repository, tag, digest in tags
        ]

    def tags_of(self, repository: Repository, digest: Digest) -> list[str]:
        """See `Store.tags_of`."""
        rows = self._db.execute(
            "SELECT DISTINCT tag FROM sighting WHERE registry = ? AND path = ? AND digest = ?",
            (repository.registry, repository.path, str(digest)),
        )
        return [row[0] for row in rows]

    def moves(self, count: int) -> list[Move]:
        """See `Store.moves`."""
        # The newest first: those that are no move, a tag's first sightings, are passed over.
        rows = self._db.execute(
            "SELECT registry, path, tag, digest, first, (SELECT digest FROM sighting AS before WHERE before.registry = now.registry"
            "  AND before.path = now.path AND before.tag = now.tag AND before.id < now.id ORDER BY id DESC LIMIT 1) AS old,"
            " EXISTS (SELECT 1 FROM sighting AS before WHERE before.registry = now.registry AND before.path = now.path"
            "  AND before.tag = now.tag AND before.id < now.id AND before.digest = now.digest)"
            " FROM sighting AS now WHERE old IS NOT NULL AND old != digest AND substr(endpoint, 1, ?2) != ?3 ORDER BY id DESC LIMIT ?1",
            (count, len(PUSHED_BY), PUSHED_BY),
        )
        return [
            Move(Repository(registry, path), Tag(tag), Digest.parse(old), Digest.parse(digest), first, bool(back))
            for registry, path, tag, digest, first, old, back in rows
        ]

    def held(self, repository: Repository | None = None) -> list[HeldTag]:
        """See `Store.held`."""
        rows = self._db.execute(
            # A hosted tag means what is held back.
            "SELECT tag.registry, tag.path, tag.tag, CASE WHEN tag.digest != sighting.digest THEN tag.digest ELSE (SELECT digest FROM sighting AS before"
            "  WHERE before.registry = tag.registry AND before.path = tag.path AND before.tag = tag.tag AND before.served IS NOT NULL"
            "  ORDER BY before.served DESC LIMIT 1) END, sighting.digest, sighting.first, held.until, sighting.released IS NOT NULL FROM held"
            " JOIN tag USING (registry, path, tag) JOIN sighting ON sighting.id = (SELECT max(id) FROM sighting AS newest WHERE newest.registry = tag.registry"
            "  AND newest.path = tag.path AND newest.tag = tag.tag)"
            " WHERE ?1 IS NULL OR (tag.registry = ?1 AND tag.path = ?2)"
            " ORDER BY held.until, tag.registry, tag.path, tag.tag",
            (None, None) if repository is None else (repository.registry, repository.path),
        )
        return [
            HeldTag(
                Repository(registry, path),
                Tag(tag),
                None if served is None else Digest.parse(served),
                Digest.parse(new),
                since,
                until,
                bool(released),
            )
            for registry, path, tag, served, new, since, until, released in rows
        ]

    def release(self, repository: Repository, tag: str, released: Released, only: Digest | None) -> Digest | None:
        """See `Store.release`. A transaction of its own."""
        place = repository.registry, repository.path, tag
        with self._db:
            row = self._db.execute(
                f"UPDATE sighting SET released = ?4, released_by = ?5, reason = ?6 WHERE id = ({_LATEST}) AND gone IS NULL"  # noqa: S608
                " AND (?7 IS NULL OR digest = ?7) RETURNING digest",
                (*place, released.when, released.who, released.why, None if only is None else str(only)),
            ).fetchone()
            if row is not None:
                # The next request asks upstream, and gets what is new. Of a hosted tag, it is when it was pushed.
                self._db.execute(
                    "UPDATE tag SET checked = 0 WHERE registry = ?1 AND path = ?2 AND tag = ?3 AND NOT EXISTS (SELECT 1 FROM hosted"
                    " WHERE hosted.registry = ?1 AND hosted.path = ?2 AND hosted.digest = tag.digest)",
                    place,
                )
                self._changed()
        return None if row is None else Digest.parse(row[0])

    def blocks(self) -> list[Block]:
        """See `Store.blocks`."""
        rows = self._db.execute("SELECT digest, reason, blocked_by, since FROM blocked ORDER BY since")
        return [Block(Digest.parse(digest), reason, who, since) for digest, reason, who, since in rows]

    def block(self, block: Block) -> None:
        """See `Store.block`. A transaction of its own."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO blocked VALUES (?, ?, ?, ?)", (str(block.digest), block.reason, block.who, block.when)
            )
            self._changed()

    def unblock(self, digest: Digest) -> bool:
        """See `Store.unblock`. A transaction of its own."""
        with self._db:
            found = self._db.execute("DELETE FROM blocked WHERE digest = ?", (str(digest),))
            if found.rowcount:
                self._changed()
        return found.rowcount > 0

    def count_rulings(self, rulings: Mapping[tuple[str, str, Repository, Reference], tuple[int, float, str]]) -> None:
        """Adds to what guards have done, with the times and reasons. Forgets what is older than 30 days, and the oldest of more
        than `MOST_RULINGS`: clients may ask for any digest. A transaction of its own."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            told = [
                (key, counted[2]) for key, counted in rulings.items() if self._events.wants(Action.GUARD) and self._is_news(*key)
            ]
            self._db.executemany(
                "INSERT INTO ruling VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " count = count + excluded.count, last = excluded.last, reason = excluded.reason",
                [
                    (rule, verdict, repository.registry, repository.path, str(reference), *counted)
                    for (rule, verdict, repository, reference), counted in rulings.items()
                ],
            )
            self._db.execute("DELETE FROM ruling WHERE last < ?", (time.time() - _RULINGS_KEPT,))
            self._db.execute(
                "DELETE FROM ruling WHERE last <= (SELECT last FROM ruling ORDER BY last DESC LIMIT 1 OFFSET ?)", (MOST_RULINGS,)
            )
        for (rule, verdict, repository, reference), reason in told:
            by_tag = isinstance(reference, Tag)
            self._events.send(
                Event(
                    Action.GUARD,
                    repository,
                    tag=str(reference) if by_tag else "",
                    digest=None if isinstance(reference, Tag) else reference,
                    details={"rule": rule, "verdict": verdict, "reason": reason},
                )
            )

    def _is_news(self, rule: str, verdict: str, repository: Repository, reference: Reference) -> bool:
        """Returns whether a rule has not done this to this image for an hour, in any process."""
        row = self._db.execute(
            "SELECT last FROM ruling WHERE rule = ? AND verdict = ? AND registry = ? AND path = ? AND reference = ?",
            (rule, verdict, repository.registry, repository.path, str(reference)),
        ).fetchone()
        return row is None or row[0] < time.time() - _NEWS

    def rulings(self, count: int) -> list[Ruled]:
        """See `Store.rulings`."""
        rows = self._db.execute(
            "SELECT rule, verdict, registry, path, reference, count, last, reason FROM ruling ORDER BY last DESC LIMIT ?",
            (count,),
        )
        return [
            Ruled(rule, verdict, Repository(registry, path), parse_reference(reference), *rest)
            for rule, verdict, registry, path, reference, *rest in rows
        ]

    def _changed(self) -> None:
        """Lets other processes know (see changes.py)."""
        self._db.execute("UPDATE decisions SET count = count + 1")


def _sighting(
    media_type: str,
    digest: str,
    size: int,
    first: float,
    last: float,
    endpoint: str,
    served: float | None,
    gone: float | None,
    released: float | None,
    who: str | None,
    why: str | None,
) -> Sighting:
    by_hand = None if released is None else Released(released, who or "", why or "")
    return Sighting(Descriptor(media_type, Digest.parse(digest), size, endpoint), first, last, served, gone, by_hand)
