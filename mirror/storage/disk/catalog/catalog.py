"""What is known about the content: a SQLite database beside the blobs, shared by all processes on one cache directory.

==========  ====================================================================================================
content     every cached blob and manifest: size in bytes, media type (of manifests only), when it was last used and last verified,
            its place in the eviction policy's queues
ghost       names of blobs that have been evicted, for the policy
child       which content a manifest names
tag         what clients get by a tag, and when upstream was last asked
held        tags of which something is held back, and until when
sighting    what tags have meant, see sightings.py
blocked     digests that were blocked by hand
ruling      what guards have done in the last month; decisions counts what was blocked or released by hand
holding     which repository has been seen to hold which manifest
possession  which repository has been seen to have which content: its registry has given it, or said that it has it (told), or an archive brought it
pin         which images are never evicted
listed      the images of lists, which are not evicted either, and how their last pulls went
attached    signatures and whatever else refers to the images of lists, which are kept with them
pull        how often clients asked for a tag or digest, and when last
traffic     what clients asked for and got, by day
removals    how many times images were deleted or tags dropped: what other processes have in memory is older than that
hosted      which hosted repository has what, blobs and manifests, who pushed it and when, and when a push last named it
referrer    which manifests of a hosted repository have a subject, with their descriptors
outbox      what has to be written to a bucket, see outbox.py
sample      how large the cache was, a few times an hour
item, part  what images are made of, see composition.py
==========  ====================================================================================================

The files are the truth: a row without its file is dropped and a file without a row taken in at every start, and a database that cannot be read is
set aside and made anew. What upstream said that is only looked up by name, lists of tags and referrers, is in a `diskcache` beside it, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mirror.errors import DigestInvalid
from mirror.events import NOBODY, Events
from mirror.manifests import Descriptor
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.disk.catalog import repositories
from mirror.storage.disk.catalog.changes import Changes
from mirror.storage.disk.catalog.counts import Counts
from mirror.storage.disk.catalog.documents import FOLDER, Documents
from mirror.storage.disk.catalog.hosted import Hosted
from mirror.storage.disk.catalog.listed import Listed
from mirror.storage.disk.catalog.outbox import Outbox, follow
from mirror.storage.disk.catalog.possessions import Possessions
from mirror.storage.disk.catalog.queues import BlobQueues
from mirror.storage.disk.catalog.removal import Removal
from mirror.storage.disk.catalog.schema import FILE, HOSTED, MANIFESTS, open_database
from mirror.storage.disk.catalog.sightings import Sightings
from mirror.storage.disk.files import make_private_folder
from mirror.storage.disk.maintenance.policy import MOST_FREQUENT, queue_of_new
from mirror.storage.store import Change
from mirror.storage.store import TagRecord as TagRecord

log = logging.getLogger(__name__)


class Catalog:
    """All methods block. For one thread at a time: CatalogExecutor has one for it."""

    def __init__(self, folder: Path, events: Events = NOBODY, copy: Path | None = None, bucket: str | None = None) -> None:
        """Opens the database, or sets an unreadable one aside and makes a new one. `events` is told of what it finds new; in the folder `copy` is kept twice what
        hosted repositories have (kept.py); what is added is queued for a `bucket` (outbox.py). Raises OSError, sqlite3.Error."""
        self.events = events
        make_private_folder(folder)
        with contextlib.ExitStack() as stack:
            self._db, lock = open_database(folder, copy)
            # Closed last, since others may open the database exclusively then.
            stack.callback(os.close, lock)
            stack.callback(self._db.close)
            if bucket is not None:
                follow(self._db, bucket)
            self.outbox = Outbox(self._db)
            self.queues = BlobQueues(self._db)
            self.removal = Removal(self._db)
            self.listed = Listed(self._db)
            self.counts = Counts(self._db, events)
            self.sightings = Sightings(self._db, events)
            self.hosted = Hosted(self._db, self._add, self.sightings)
            self.possessions = Possessions(self._db)
            self.changed = Changes(self._db)
            self._documents = Documents(folder / FOLDER)
            stack.callback(self._documents.close)
            self.close = stack.pop_all().close
            """Closes the databases, each also where another fails to close."""

    def copy(self, folder: Path) -> None:
        """Copies the database into another catalog's folder."""
        with contextlib.closing(sqlite3.connect(folder / FILE)) as other:
            self._db.backup(other)

    # ------------------------------------------------------------------ content

    def add(self, digest: Digest, size: int) -> None:
        """Adds a row for a cached blob."""
        with self._db:
            self._add(digest, size, None)

    def add_manifest(self, descriptor: Descriptor, children: Iterable[Digest]) -> None:
        """Adds rows for a cached manifest and for what it names."""
        self.take_in([(descriptor, children)])

    def take_in(self, entries: Iterable[tuple[Descriptor, Iterable[Digest]]]) -> None:
        """Adds rows for cached content and for what it names. Blobs have no media type."""
        with self._db:
            for descriptor, children in entries:
                self._add(descriptor.digest, descriptor.size, descriptor.media_type or None)
                self._db.executemany(
                    "INSERT OR IGNORE INTO child VALUES (?, ?)", [(str(descriptor.digest), str(child)) for child in children]
                )

    def _add(self, digest: Digest, size: int, media_type: str | None) -> None:
        name, now = str(digest), time.time()
        queue = HOSTED if self.hosted.is_linked(digest) else MANIFESTS if media_type else queue_of_new(self.queues, name, size)
        self._db.execute(
            "INSERT INTO content (digest, size, media_type, used, queue, entered, verified) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET used = excluded.used, media_type = coalesce(excluded.media_type, media_type),"
            " queue = CASE WHEN queue = ? OR excluded.media_type IS NULL THEN queue ELSE excluded.queue END",
            (name, size, media_type, now, int(queue), self.queues.young_end(queue), now, HOSTED),
        )

    def manifest_type(self, digest: Digest) -> str | None:
        """Returns the media type of a cached manifest; None if it is not cached."""
        row = self._db.execute("SELECT media_type FROM content WHERE digest = ?", (str(digest),)).fetchone()
        return row[0] if row else None

    def manifests_below(self, digests: Iterable[Digest]) -> dict[Digest, str]:
        """Returns the media types of cached manifests, and of those that they name, all the way down."""
        rows = self._db.execute(
            "WITH RECURSIVE below (digest) AS (SELECT value FROM json_each(?)"
            " UNION SELECT child.digest FROM below JOIN child ON child.parent = below.digest)"
            " SELECT digest, media_type FROM below JOIN content USING (digest) WHERE media_type IS NOT NULL",
            (json.dumps([str(digest) for digest in digests]),),
        )
        found = {}
        for digest, media_type in rows:
            with contextlib.suppress(DigestInvalid):
                found[Digest.parse(digest)] = media_type
        return found

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Runs its body in one transaction that excludes other writers."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    @contextlib.contextmanager
    def durably(self) -> Iterator[None]:
        """Like `changing`, and what was changed is on the disk when it ends: no power cut takes it back. (Others may lose their last rows then.)"""
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            with self.changing():
                yield
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")

    def drop(self, digest: Digest) -> None:
        """Deletes the rows of content whose file is gone. Call it inside `changing`."""
        name = (str(digest),)
        self._db.execute("DELETE FROM content WHERE digest = ?", name)
        self._db.execute("DELETE FROM possession WHERE digest = ?", name)
        if not self.hosted.is_linked(digest):
            # A manifest that was pushed may have been lost from the disk. What it names must stay: whoever has it pushes it again.
            self._db.execute("DELETE FROM child WHERE parent = ?", name)
            self._db.execute("DELETE FROM holding WHERE digest = ?", name)

    def forget(self, digests: Iterable[Digest], is_gone: Callable[[Digest], bool]) -> None:
        """Deletes the rows of content whose files are gone, as `is_gone` says.

        It is called within the transaction: a file that is written again meanwhile, by any process, keeps its row or gets a new one afterwards.
        """
        with self.changing():
            for digest in digests:
                # What has no row is being downloaded, and who has it may be noted already.
                if self._db.execute("SELECT 1 FROM content WHERE digest = ?", (str(digest),)).fetchone() and is_gone(digest):
                    self.drop(digest)

    def parents(self, digest: Digest) -> dict[Digest, float]:
        """The cached manifests that name something, and when each was last used, in seconds since the epoch."""
        rows = self._db.execute(
            "SELECT parent, used FROM child JOIN content ON content.digest = parent WHERE child.digest = ?", (str(digest),)
        )
        return {Digest.parse(parent): used for parent, used in rows}

    def touch(self, uses: dict[Digest, float]) -> None:
        """Notes when content was last used, in seconds since the epoch, and that it was used once more."""
        with self._db:
            self._db.executemany(
                "UPDATE content SET used = ?, frequency = min(?, frequency + 1) WHERE digest = ?",
                [(used, MOST_FREQUENT, str(digest)) for digest, used in uses.items()],
            )

    def totals(self) -> tuple[int, int]:
        """Bytes and number of all cached content."""
        size, entries = self._db.execute("SELECT sum(bytes), sum(entries) FROM total WHERE part <= ?", (MANIFESTS,)).fetchone()
        return size, entries

    def content(self) -> dict[Digest, int]:
        """All there is, with sizes in bytes."""
        return dict(_sized(self._db.execute("SELECT digest, size FROM content")))

    def spent_manifests(self, before: float | None = None) -> list[tuple[Digest, int]]:
        """The manifests none of whose content is cached, with sizes in bytes, the longest unused first; those unused since `before`, or all."""
        return list(
            _sized(
                self._db.execute(
                    "SELECT digest, size FROM content AS parent WHERE queue = ? AND used < ? AND NOT EXISTS ("
                    " SELECT 1 FROM child JOIN content ON content.digest = child.digest WHERE child.parent = parent.digest)"
                    " ORDER BY used",
                    (MANIFESTS, math.inf if before is None else before),
                )
            )
        )

    def names_cached(self, digest: Digest) -> bool:
        """True for a manifest that names something cached."""
        return bool(
            self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM child JOIN content ON content.digest = child.digest WHERE child.parent = ?)",
                (str(digest),),
            ).fetchone()[0]
        )

    def expired(self, limits: Iterable[tuple[str, str, float]]) -> list[Digest]:
        """What belongs to expired images alone, and has not been used for as long.

        `limits` are (registry, path, time since when an image must have been used to stay). An image has expired when all repositories that are known to
        hold its manifest have a limit, and it has not been used since any of them. Blobs that no manifest names belong to no image.
        """
        with self.changing():
            self._db.execute(
                "CREATE TEMP TABLE IF NOT EXISTS expiry (registry TEXT, path TEXT, before REAL, PRIMARY KEY (registry, path))"
            )
            self._db.execute("DELETE FROM expiry")
            self._db.executemany("INSERT INTO expiry VALUES (?, ?, ?)", limits)
            rows = self._db.execute(
                "WITH RECURSIVE image (digest, before) AS ("  # before: NULL where one of its repositories has no limit
                "  SELECT content.digest, CASE WHEN count(*) = count(expiry.before) THEN min(expiry.before) END"
                "  FROM content JOIN holding USING (digest) LEFT JOIN expiry USING (registry, path) GROUP BY content.digest),"
                " stale (digest) AS (SELECT digest FROM content JOIN image USING (digest) WHERE used < before AND queue != ?2),"
                " kept (digest) AS (SELECT digest FROM content WHERE queue IN (?1, ?2) AND digest NOT IN stale"
                "  UNION SELECT child.digest FROM kept JOIN child ON child.parent = kept.digest),"
                " named (digest) AS (SELECT digest FROM stale UNION SELECT child.digest FROM named JOIN child ON child.parent = named.digest)"
                " SELECT digest, size FROM named JOIN content USING (digest)"
                " WHERE digest NOT IN kept AND queue != ?2 AND used < (SELECT max(before) FROM expiry) ORDER BY queue, used",
                (MANIFESTS, HOSTED),
            ).fetchall()
        return [digest for digest, _ in _sized(rows)]

    def orphans(self, before: float) -> list[Digest]:
        """Blobs that no cached manifest names, and that have not been used since `before`."""
        rows = self._db.execute(
            "SELECT digest, size FROM content AS blob WHERE queue < ? AND used < ? AND NOT EXISTS ("
            " SELECT 1 FROM child JOIN content ON content.digest = parent WHERE child.digest = blob.digest)",
            (MANIFESTS, before),
        )
        return [digest for digest, _ in _sized(rows)]

    def unverified(self, before: float) -> tuple[Digest, int] | None:
        """The content, with its size in bytes, that was last verified the longest ago; None where all has been since `before`."""
        row = self._db.execute(
            "SELECT digest, size FROM content WHERE verified < ? ORDER BY verified LIMIT 1", (before,)
        ).fetchone()
        return next(_sized([row]), None) if row else None

    def set_verified(self, digests: Iterable[Digest], when: float) -> None:
        with self._db:
            self._db.executemany("UPDATE content SET verified = ? WHERE digest = ?", [(when, str(digest)) for digest in digests])

    # ------------------------------------------------------------------ names

    def tag(self, repository: Repository, tag: str) -> TagRecord | None:
        """See `Store.tag`."""
        row = self._db.execute(
            "SELECT media_type, digest, size, checked, until FROM tag LEFT JOIN held USING (registry, path, tag)"
            " WHERE registry = ? AND path = ? AND tag = ?",
            (repository.registry, repository.path, tag),
        ).fetchone()
        return TagRecord(Descriptor(row[0], Digest.parse(row[1]), row[2]), *row[3:]) if row else None

    def resolve(self, images: Iterable[tuple[Repository, Reference]]) -> list[Reference]:
        """Returns the digests that references mean now. A tag that is not known is returned as it is."""
        found: list[Reference] = []
        for repository, reference in images:
            record = self.tag(repository, reference.value) if isinstance(reference, Tag) else None
            found.append(reference if record is None else record.descriptor.digest)
        return found

    def set_tag(self, repository: Repository, tag: str, record: TagRecord, seen: bool = True) -> None:
        found, place = record.descriptor, (repository.registry, repository.path, tag)
        with self._db:
            row = (*place, str(found.digest), found.media_type, found.size, record.checked)
            self._db.execute("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self.sightings.note_served(repository, tag, record, seen)
        self.changed.checked_here(repository, tag, record.checked)

    def drop_tag(self, repository: Repository, tag: str, when: float | None = None) -> None:
        with self._db:
            if when is not None:
                self.sightings.note_gone(repository, tag, when)
            gone = self._db.execute(
                "DELETE FROM tag WHERE registry = ? AND path = ? AND tag = ?", (repository.registry, repository.path, tag)
            )
            if gone.rowcount:
                # No row is left for other processes to find.
                self._db.execute("UPDATE removals SET count = count + 1")
                self.changed.deleted_here()

    def tags(self, repository: Repository, meaning: Digest | None) -> list[str]:
        """See `Store.tags`."""
        rows = self._db.execute(
            "SELECT tag FROM tag WHERE registry = ? AND path = ? AND digest = coalesce(?, digest)",
            (repository.registry, repository.path, None if meaning is None else str(meaning)),
        )
        return [row[0] for row in rows]

    def repositories(self) -> list[tuple[str, str]]:
        """(registry, path) of every repository with a cached manifest."""
        return self._db.execute(
            "SELECT DISTINCT registry, path FROM holding JOIN content USING (digest)"
            " UNION SELECT DISTINCT registry, path FROM tag JOIN content USING (digest)"
        ).fetchall()

    def holder(self, digest: Digest) -> Repository | None:
        return repositories.holder(self._db, digest)

    def changes(self) -> Change | None:
        """Returns what other processes have written since the last call, None if it changes nothing that other objects remember."""
        return self.changed.take()

    # ------------------------------------------------------------------ pins

    def pin(self, repository: Repository, reference: Reference) -> Digest | None:
        """Keeps an image from eviction: what a tag means at any time, or a digest. It need not be cached, or known, yet.

        A tag that upstream has dropped keeps what it meant last. Returns what it means now, None where that is not known.
        """
        names = repository.registry, repository.path, str(reference)
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO pin VALUES (?1, ?2, ?3,"
                " coalesce(?4, (SELECT digest FROM tag WHERE registry = ?1 AND path = ?2 AND tag = ?3)), ?5)",
                (*names, None if isinstance(reference, Tag) else str(reference), time.time()),
            )
        named = self.removal.find(repository, reference)
        return None if named is None else named.digest

    def unpin(self, repository: Repository, reference: Reference) -> bool:
        """See `Store.unpin`."""
        with self._db:
            found = self._db.execute(
                "DELETE FROM pin WHERE registry = ? AND path = ? AND reference = ?",
                (repository.registry, repository.path, str(reference)),
            )
        return found.rowcount > 0

    def pinned(self) -> dict[Digest, int]:
        """Everything cached that belongs to a pinned or listed image, is attached to a listed one, or is served in place of something held back, or is held back and here, with sizes in bytes: manifest or index,
        what they name, and so on down. Not what is hosted, which takes none of the cache's room."""
        return dict(
            _sized(
                self._db.execute(
                    "WITH RECURSIVE kept (digest) AS (SELECT digest FROM pin WHERE digest IS NOT NULL"
                    " UNION SELECT digest FROM listed WHERE digest IS NOT NULL UNION SELECT digest FROM attached"
                    " UNION SELECT digest FROM tag JOIN held USING (registry, path, tag)"
                    " UNION SELECT (SELECT digest FROM sighting WHERE sighting.registry = held.registry AND sighting.path = held.path"
                    "  AND sighting.tag = held.tag ORDER BY id DESC LIMIT 1) FROM held"
                    " UNION SELECT child.digest FROM kept JOIN child ON child.parent = kept.digest)"
                    " SELECT digest, size FROM kept JOIN content USING (digest) WHERE queue != ?",
                    (HOSTED,),
                )
            )
        )

    # ------------------------------------------------------------------ documents

    def document(self, key: str) -> dict[str, Any] | None:
        """See `Store.document`."""
        return self._documents.get(key)

    def set_document(self, key: str, value: dict[str, Any]) -> None:
        self._documents.set(key, value)


def _sized(rows: Iterable[tuple[str, int]]) -> Iterator[tuple[Digest, int]]:
    for digest, size in rows:
        with contextlib.suppress(DigestInvalid):
            yield Digest.parse(digest), size
