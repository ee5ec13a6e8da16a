"""What the repositories have that live here: queries that run in the catalog's thread. See mirror/storage/hosted.py.

A row of ``hosted`` is a *link*: it says that a repository has a blob or manifest. Content with a link is in the queue HOSTED. ``used`` is when a push last named
the content: from then on counts the time for which it is kept without a manifest, or without a name.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection
from typing import Any

from mirror.errors import HostedFull, ManifestInvalid, Pinned, ReferenceUnknown, TagImmutable
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository, image_name
from mirror.storage.disk.catalog.removal import Removal
from mirror.storage.disk.catalog.schema import HOSTED, MANIFESTS
from mirror.storage.disk.catalog.sightings import Sightings
from mirror.storage.hosted import MOST_DESCRIBED, PushedManifest
from mirror.storage.sightings import PUSHED_BY
from mirror.units import format_size

_MOST_NAMED = 5
"""Missing digests that an error names."""


class Hosted:
    """Changes belong to the transaction that is open."""

    def __init__(self, db: sqlite3.Connection, add: Callable[[Digest, int, str | None], None], sightings: Sightings) -> None:
        """`add` enters content by digest, size in bytes and media type; `sightings` are told what is pushed."""
        self._db = db
        self._add = add
        self._sightings = sightings

    # ------------------------------------------------------------------ links

    def is_linked(self, digest: Digest) -> bool:
        """Returns whether any hosted repository has it."""
        return bool(self._db.execute("SELECT EXISTS (SELECT 1 FROM hosted WHERE digest = ?)", (str(digest),)).fetchone()[0])

    def has(self, repository: Repository, digest: Digest) -> bool:
        """See `HostedStore.has`."""
        return self._used(repository, digest) is not None

    def touch(self, repository: Repository, digest: Digest, within: float) -> bool:
        """See `HostedStore.touch`. A transaction of its own, if it was not touched `within` so many seconds."""
        used, now = self._used(repository, digest), time.time()
        if used is not None and not now - within < used <= now:
            with self._db:
                self._db.execute(
                    "UPDATE hosted SET used = ? WHERE registry = ? AND path = ? AND digest = ?", (now, *_key(repository, digest))
                )
        return used is not None

    def _used(self, repository: Repository, digest: Digest) -> float | None:
        row = self._db.execute(
            "SELECT used FROM hosted WHERE registry = ? AND path = ? AND digest = ?", _key(repository, digest)
        ).fetchone()
        return None if row is None else row[0]

    def size(self) -> int:
        """Bytes of all hosted content."""
        size: int = self._db.execute("SELECT bytes FROM total WHERE part = ?", (HOSTED,)).fetchone()[0]
        return size

    def check_room(self, digest: Digest, size: int, most: int | None) -> None:
        """Raises HostedFull if `size` bytes more are too many, and the content is not hosted yet."""
        if most is not None and not self.is_linked(digest) and (here := self.size()) + size > most:
            raise full(here, size, most)

    def link(self, repository: Repository, digest: Digest, size: int, media_type: str | None, who: str) -> None:
        """Enters that a repository has content, whose file is here."""
        now = time.time()
        self._db.execute(
            "INSERT INTO hosted VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET manifest = max(manifest, excluded.manifest),"
            " pushed = excluded.pushed, who = excluded.who, used = excluded.used",
            (*_key(repository, digest), media_type is not None, now, who, now),
        )
        self._add(digest, size, media_type)
        self._db.execute("UPDATE content SET queue = ?1 WHERE digest = ?2 AND queue != ?1", (HOSTED, str(digest)))

    def unlink(self, repository: Repository, digests: Collection[Digest]) -> None:
        """Deletes links. The content goes by `release`."""
        names = json.dumps([str(digest) for digest in digests])
        for table in ("hosted", "referrer", "holding"):
            self._db.execute(
                f"DELETE FROM {table} WHERE registry = ? AND path = ? AND digest IN (SELECT value FROM json_each(?))",  # noqa: S608
                (repository.registry, repository.path, names),
            )
        # Of manifests that were lost from the disk: of others, when their content goes.
        self._db.execute(
            "DELETE FROM child WHERE parent IN (SELECT value FROM json_each(?)) AND NOT EXISTS (SELECT 1 FROM content WHERE digest = parent)"
            " AND NOT EXISTS (SELECT 1 FROM hosted WHERE hosted.digest = parent)",
            (names,),
        )
        # No row is left for other processes to find.
        self._db.execute("UPDATE removals SET count = count + 1")

    def unlinked(self, count: int) -> list[tuple[Digest, int]]:
        """Returns hosted content that no repository has any more, with sizes in bytes."""
        rows = self._db.execute(
            "SELECT digest, size FROM content WHERE queue = ? AND NOT EXISTS (SELECT 1 FROM hosted WHERE hosted.digest = content.digest)"
            " LIMIT ?",
            (HOSTED, count),
        )
        return [(Digest.parse(digest), size) for digest, size in rows]

    def return_to_cache(self, digest: Digest) -> bool:
        """Makes unlinked content the cache's own if an image that is cached has it; returns whether it has."""
        found = self._db.execute(
            f"UPDATE content SET queue = CASE WHEN media_type IS NULL THEN 0 ELSE {MANIFESTS} END WHERE digest = ?1 AND ("  # noqa: S608
            " EXISTS (SELECT 1 FROM holding WHERE digest = ?1)"
            " OR EXISTS (SELECT 1 FROM child JOIN content AS parent ON parent.digest = child.parent"
            f"  WHERE child.digest = ?1 AND parent.queue != {HOSTED}))",
            (str(digest),),
        )
        return found.rowcount > 0

    # ------------------------------------------------------------------ manifests and tags

    def check_manifest(
        self, repository: Repository, pushed: PushedManifest, tags: Collection[str], immutable: Callable[[str], bool]
    ) -> None:
        """Returns if a manifest can be entered with its tags. Raises ReferenceUnknown, ManifestInvalid, TagImmutable."""
        # What was lost from the disk is missing too.
        missing = self._db.execute(
            "SELECT value FROM json_each(?3) WHERE NOT EXISTS ("
            "SELECT 1 FROM hosted JOIN content USING (digest) WHERE registry = ?1 AND path = ?2 AND digest = value) LIMIT ?4",
            (repository.registry, repository.path, json.dumps([str(digest) for digest in pushed.needed]), _MOST_NAMED),
        ).fetchall()
        if missing:
            named = ", ".join(row[0] for row in missing)
            raise ReferenceUnknown(f"{repository.path} does not have what the manifest names: push it first: {named}")
        other = self._db.execute(
            "SELECT digest, size, json_each.value FROM json_each(?) JOIN content ON digest = json_each.key AND size != json_each.value",
            (json.dumps({str(digest): size for digest, size in pushed.sizes.items()}),),
        ).fetchone()
        if other is not None:
            raise ManifestInvalid(
                f"{other[0]} has {other[1]} bytes, not {other[2]} as the manifest says: no client would take it"
            )
        for tag in filter(immutable, tags):
            before = self._db.execute(
                "SELECT digest FROM tag WHERE registry = ? AND path = ? AND tag = ?", (repository.registry, repository.path, tag)
            ).fetchone()
            if before is not None and before[0] != str(pushed.manifest.digest):
                raise TagImmutable(
                    f"{repository.path}:{tag} is immutable (hosted.immutable), and means {before[0]}: push another tag"
                )

    def put_manifest(
        self,
        repository: Repository,
        pushed: PushedManifest,
        tags: Collection[str],
        who: str,
        immutable: Callable[[str], bool],
        *,
        served: bool,
    ) -> None:
        """Enters a manifest with its tags, by which clients get it at once if `served`. Raises as `check_manifest` does."""
        manifest = pushed.manifest
        self.check_manifest(repository, pushed, tags, immutable)
        place, now = (repository.registry, repository.path), time.time()
        # From now on what the tags meant may be without a name.
        self._db.executemany(
            "UPDATE hosted SET used = ?1 WHERE registry = ?2 AND path = ?3"
            " AND digest = (SELECT digest FROM tag WHERE registry = ?2 AND path = ?3 AND tag = ?4)",
            [(now, *place, tag) for tag in tags],
        )
        size = len(manifest.body)
        self.link(repository, manifest.digest, size, manifest.media_type, who)
        self._db.executemany(
            "INSERT OR IGNORE INTO child VALUES (?, ?)", [(str(manifest.digest), str(child)) for child in pushed.children]
        )
        self._db.execute("INSERT OR IGNORE INTO holding VALUES (?, ?, ?)", _key(repository, manifest.digest))
        seen = Descriptor(manifest.media_type, manifest.digest, size, f"{PUSHED_BY}{who}")
        for tag in tags:
            self._sightings.note_pushed(repository, tag, seen, now, served=served)
        self._db.executemany(
            "INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*place, tag, str(manifest.digest), manifest.media_type, size, now) for tag in tags],
        )
        if pushed.subject is not None:
            self._db.execute(
                "INSERT OR REPLACE INTO referrer VALUES (?, ?, ?, ?, ?)",
                (*place, str(pushed.subject), str(manifest.digest), json.dumps(pushed.described)),
            )

    def delete_tag(self, repository: Repository, tag: str) -> bool:
        """Deletes a tag; its manifest stays. Returns False if there is none."""
        place, now = (repository.registry, repository.path), time.time()
        self._db.execute(
            "UPDATE hosted SET used = ?4 WHERE registry = ?1 AND path = ?2"
            " AND digest IN (SELECT digest FROM tag WHERE registry = ?1 AND path = ?2 AND tag = ?3)",
            (*place, tag, now),
        )
        self._sightings.note_gone(repository, tag, now)
        gone = self._db.execute("DELETE FROM tag WHERE registry = ? AND path = ? AND tag = ?", (*place, tag)).rowcount > 0
        if gone:
            self._db.execute("DELETE FROM pull WHERE registry = ? AND path = ? AND reference = ?", (*place, tag))
            # No row is left for other processes to find.
            self._db.execute("UPDATE removals SET count = count + 1")
        return gone

    def delete_manifest(self, repository: Repository, digest: Digest, immutable: Callable[[str], bool]) -> bool:
        """Deletes a manifest with the tags that mean it. Returns False if there is none. Raises Pinned, TagImmutable."""
        if not self.has(repository, digest):
            return False
        removal = Removal(self._db)
        named = removal.find(repository, digest)
        if named is not None:
            if named.pinned or named.list is not None:
                raise Pinned(f"{image_name(repository, digest)} is pinned: unpin it first")
            if fixed := [tag for tag in named.tags if immutable(tag)]:
                raise TagImmutable(f"{repository.path}:{fixed[0]} is immutable (hosted.immutable), and means {digest}")
            for tag in named.tags:
                self._sightings.note_gone(repository, tag, time.time())
            removal.forget_names(repository, digest, named)
        self.unlink(repository, [digest])
        return True

    def is_pinned(self, repository: Repository, tag: str) -> bool:
        """Returns whether a tag is pinned or listed."""
        key = repository.registry, repository.path, tag
        return bool(
            self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM pin WHERE registry = ?1 AND path = ?2 AND reference = ?3)"
                " OR EXISTS (SELECT 1 FROM listed WHERE registry = ?1 AND path = ?2 AND reference = ?3)",
                key,
            ).fetchone()[0]
        )

    def naming(self, repository: Repository, digest: Digest) -> str | None:
        """Returns a manifest of a repository that names something; None if none does."""
        row = self._db.execute(
            "SELECT parent FROM child JOIN hosted ON hosted.digest = parent AND registry = ? AND path = ? WHERE child.digest = ? LIMIT 1",
            _key(repository, digest),
        ).fetchone()
        return None if row is None else row[0]

    def tags(self, repository: Repository, after: str, count: int | None) -> list[str]:
        """See `HostedStore.tags`."""
        rows = self._db.execute(
            "SELECT tag FROM tag WHERE registry = ? AND path = ? AND tag > ? ORDER BY tag LIMIT ?",
            (repository.registry, repository.path, after, -1 if count is None else count),
        )
        return [row[0] for row in rows]

    def referrers(self, repository: Repository, subject: Digest) -> list[dict[str, Any]]:
        """See `HostedStore.referrers`."""
        rows = self._db.execute(
            "SELECT CASE WHEN sum(length(described)) OVER (ORDER BY length(described), digest) > ?4 THEN json_remove(described, '$.annotations')"
            " ELSE described END FROM referrer WHERE registry = ?1 AND path = ?2 AND subject = ?3",
            (*_key(repository, subject), MOST_DESCRIBED),
        )
        return [json.loads(row[0]) for row in rows]

    # ------------------------------------------------------------------ what is no longer named

    def repositories(self) -> list[Repository]:
        """Every repository that has something."""
        return [Repository(*row) for row in self._db.execute("SELECT DISTINCT registry, path FROM hosted")]

    def dated_tags(self, repository: Repository) -> list[tuple[str, float]]:
        """The tags of a repository, with when each was pushed, the last one first."""
        return self._db.execute(
            "SELECT tag, checked FROM tag WHERE registry = ? AND path = ? ORDER BY checked DESC, tag DESC",
            (repository.registry, repository.path),
        ).fetchall()

    def unnamed_manifests(self, repository: Repository, before: float) -> list[Digest]:
        """The manifests of a repository that no tag, pin, index or subject names, and no push has named since `before`."""
        rows = self._db.execute(
            "SELECT digest FROM hosted AS own WHERE registry = ?1 AND path = ?2 AND manifest AND used < ?3"
            " AND NOT EXISTS (SELECT 1 FROM tag WHERE tag.digest = own.digest AND tag.registry = ?1 AND tag.path = ?2)"
            " AND NOT EXISTS (SELECT 1 FROM pin WHERE pin.digest = own.digest)"
            " AND NOT EXISTS (SELECT 1 FROM listed WHERE listed.digest = own.digest)"
            " AND NOT EXISTS (SELECT 1 FROM attached WHERE attached.digest = own.digest)"
            " AND NOT EXISTS (SELECT 1 FROM child JOIN hosted AS upper ON upper.digest = parent AND upper.registry = ?1 AND upper.path = ?2"
            "  WHERE child.digest = own.digest)"
            " AND NOT EXISTS (SELECT 1 FROM referrer JOIN hosted AS upper ON upper.digest = subject AND upper.registry = ?1 AND upper.path = ?2"
            "  WHERE referrer.digest = own.digest AND referrer.registry = ?1 AND referrer.path = ?2)"
            # What is served in place of something that is held back.
            " AND NOT EXISTS (SELECT 1 FROM held WHERE held.registry = ?1 AND held.path = ?2 AND own.digest = (SELECT digest FROM sighting"
            "  WHERE sighting.registry = ?1 AND sighting.path = ?2 AND sighting.tag = held.tag AND served IS NOT NULL ORDER BY served DESC LIMIT 1))",
            (repository.registry, repository.path, before),
        )
        return [Digest.parse(row[0]) for row in rows]

    def unnamed_blobs(self, repository: Repository, before: float) -> list[Digest]:
        """The blobs of a repository that none of its manifests names, and no push has named since `before`."""
        rows = self._db.execute(
            "SELECT digest FROM hosted AS own WHERE registry = ?1 AND path = ?2 AND NOT manifest AND used < ?3"
            " AND NOT EXISTS (SELECT 1 FROM child JOIN hosted AS upper ON upper.digest = parent AND upper.registry = ?1 AND upper.path = ?2"
            "  WHERE child.digest = own.digest)",
            (repository.registry, repository.path, before),
        )
        return [Digest.parse(row[0]) for row in rows]


def full(here: int, size: int, most: int) -> HostedFull:
    """The error for what is too much."""
    return HostedFull(
        f"hosted repositories may have {format_size(most)} (hosted.max_size), and have {format_size(here)}: {format_size(size)} more do not fit;"
        " delete images and run mirror gc, or set a larger hosted.max_size"
    )


def _key(repository: Repository, digest: Digest) -> tuple[str, str, str]:
    return repository.registry, repository.path, str(digest)
