"""What is in the cache, for people: images with their sizes, use and freshness, what one is made of, and totals.

Asked of the catalog over a connection of its own, so that a long answer holds up no pull, beside a running server or without one. Blocking, and for one thread
at a time.

An *image* is a tag whose manifest is cached, or a cached manifest that a repository holds under no tag and in no index.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mirror.manifests import INDEXES, MAX_SIZE, Descriptor, blobs_of, entries_of
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog import repositories
from mirror.storage.disk.catalog.composition import learn, sizes
from mirror.storage.disk.catalog.history import TRAFFIC, read
from mirror.storage.disk.catalog.schema import FILE, HOSTED, connect
from mirror.storage.image_config import parse_config
from mirror.storage.inventory import (
    ORDERS,
    Details,
    History,
    Image,
    Layer,
    Neighbour,
    Page,
    Pulled,
    RepositoryLine,
    Totals,
    Traffic,
    UnderWay,
    Variant,
)

_VIEW = """
CREATE TEMP VIEW image AS
WITH named AS (
    SELECT registry, path, tag, digest, checked FROM tag
    UNION ALL
    SELECT registry, path, NULL, digest, NULL FROM holding WHERE NOT EXISTS (
        SELECT 1 FROM tag WHERE tag.digest = holding.digest AND tag.registry = holding.registry AND tag.path = holding.path)
)
SELECT named.*, id, fetched, pull.count AS pulls, pull.last AS pulled, pin.since IS NOT NULL AS pinned,
    EXISTS (SELECT 1 FROM listed WHERE listed.registry = named.registry AND listed.path = named.path
        AND listed.reference = coalesce(tag, named.digest)) AS listed, hosted.pushed, hosted.who
FROM named CROSS JOIN item ON item.digest = named.digest AND item.manifest
LEFT JOIN pull ON pull.registry = named.registry AND pull.path = named.path AND pull.reference = coalesce(tag, named.digest)
LEFT JOIN hosted ON hosted.registry = named.registry AND hosted.path = named.path AND hosted.digest = named.digest
LEFT JOIN pin ON pin.registry = named.registry AND pin.path = named.path AND pin.reference = coalesce(tag, named.digest)
WHERE tag IS NOT NULL OR NOT EXISTS (SELECT 1 FROM part WHERE part.item = item.id AND part.root != item.id)
"""
_PAGE = """
SELECT registry, path, tag, digest, checked, id, fetched, pulls, pulled, pinned, listed, pushed, who, count(*) OVER () FROM image
WHERE (?1 = '' OR registry || '/' || path = ?1) AND NOT EXISTS (
    SELECT 1 FROM json_each(?2) AS word
    WHERE instr(lower(image.registry || '/' || image.path || ':' || coalesce(tag, '')), word.value) = 0
        AND instr(digest, word.value) != 1)
ORDER BY CASE ?3 WHEN 'pulled' THEN -coalesce(pulled, 0) WHEN 'fetched' THEN -fetched WHEN 'pinned' THEN -(pinned OR listed)
    WHEN 'size' THEN -(SELECT sum(item.size) FROM part JOIN item ON item.id = part.item WHERE part.root = image.id) END,
    registry, path, tag IS NULL, tag, digest LIMIT ?4 OFFSET ?5
"""
_ONE = """
SELECT registry, path, tag, digest, checked, id, fetched, pulls, pulled, pinned, listed, pushed, who FROM image
WHERE registry = ? AND path = ? AND ? IN (tag, digest) ORDER BY tag LIMIT 1
"""


class Inventory:
    """Implements `mirror.storage.inventory.Inventory`, but blocks."""

    def __init__(self, root: Path) -> None:
        """Opens the catalog of an existing cache directory. Raises OSError, sqlite3.Error."""
        self._store = BlobStore(root)
        self._db = connect(root / "catalog" / FILE)
        try:
            self._db.execute(_VIEW)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def learn(self) -> None:
        """Reads new manifests. Every query does so first."""
        learn(self._db, self._store)

    def images(
        self,
        search: str = "",
        order: str = "name",
        start: int = 0,
        count: int | None = None,
        repository: Repository | None = None,
    ) -> Page[Image]:
        """The images from `start` on, `count` of them at most; of one repository, or of all.

        Every word of `search` must be part of ``registry/path:tag``, or begin the digest; in whatever case. `order` is one of ORDERS.
        """
        assert order in ORDERS, order
        self.learn()
        # Each word once: ninety times the same word would cost ninety comparisons for every image.
        words = json.dumps(list(dict.fromkeys(search.lower().split())))
        within = "" if repository is None else str(repository)
        rows = self._db.execute(_PAGE, (within, words, order, -1 if count is None else count, start)).fetchall()
        if not rows and start:
            return Page((), self.images(search, order, 0, 1, repository).total)
        return Page(self._with_sizes(rows), rows[0][-1] if rows else 0)

    def image(self, repository: Repository, reference: Reference) -> Details | None:
        """Returns the manifests and layers of an image, by tag or digest; None if it is not cached."""
        self.learn()
        rows = self._db.execute(_ONE, (repository.registry, repository.path, str(reference))).fetchall()
        if not rows:
            return None
        (image,) = self._with_sizes(rows)
        media_type = self._db.execute("SELECT media_type FROM content WHERE digest = ?", (str(image.digest),)).fetchone()
        body = self._read(image.digest)
        if media_type and media_type[0] in INDEXES:
            variants = [self._variant(entry.descriptor.digest, entry.platform) for entry in entries_of(body)]
        else:
            variants = [self._variant(image.digest, next(iter(image.platforms), None))]
        return Details(image, media_type[0] if media_type else "", tuple(variants), self._neighbours(rows[0][5]))

    def repositories(self, order: str = "name", start: int = 0, count: int = 50) -> Page[RepositoryLine]:
        """The repositories from `start` on, `count` of them at most; `order` is one of ORDERS."""
        assert order in ORDERS, order
        self.learn()
        return repositories.read_page(self._db, order, start, count)

    def most_pulled(self, count: int) -> tuple[Pulled, ...]:
        """The images that clients have asked for most often."""
        return repositories.most_pulled(self._db, count)

    def under_way(self, repository: Repository, digests: Iterable[str]) -> dict[str, UnderWay]:
        """By digest, the image of a repository that each of some blobs belongs to, as far as that is known."""
        return repositories.under_way(self._db, self._read, repository, digests)

    def totals(self) -> Totals:
        """Returns the totals."""
        self.learn()
        one = self._db.execute
        images, repositories, pinned = one(
            "SELECT count(*), count(DISTINCT registry || '/' || path), coalesce(sum(pinned OR listed), 0) FROM image"
        ).fetchone()
        manifests, entries, size = one(
            "SELECT coalesce(sum(manifest), 0), count(*), coalesce(sum(size), 0) FROM item WHERE size >= 0"
        ).fetchone()
        hosted = one("SELECT bytes FROM total WHERE part = ?", (HOSTED,)).fetchone()[0]
        traffic = one(f"SELECT {TRAFFIC} FROM traffic").fetchone()  # noqa: S608
        unfinished = 0
        for file in self._store.spool.glob("*.part"):
            with contextlib.suppress(OSError):
                unfinished += file.stat().st_blocks * 512
        return Totals(
            images, repositories, manifests, entries - manifests, size - hosted, unfinished, pinned, Traffic(*traffic), hosted
        )

    def history(self) -> History:
        """Returns the last month's history."""
        return read(self._db, time.time())

    def blocked(self) -> int:
        """Returns how many digests are blocked by hand."""
        return int(self._db.execute("SELECT count(*) FROM blocked").fetchone()[0])

    def _with_sizes(self, rows: Iterable[tuple[Any, ...]]) -> tuple[Image, ...]:
        listed = list(rows)
        known = {row[0]: row[1:] for row in sizes(self._db, json.dumps([row[5] for row in listed]))}
        found = []
        for registry, path, tag, digest, checked, number, fetched, pulls, pulled, pinned, in_list, pushed, who, *_ in listed:
            size, shared, missing, platforms = known.get(number, (0, 0, 0, None))
            parsed = Digest.parse(digest)
            found.append(
                Image(
                    Repository(registry, path),
                    parsed if tag is None else Tag(tag),
                    parsed,
                    tuple(sorted(platforms.split(","))) if platforms else (),
                    size,
                    shared,
                    missing,
                    fetched or 0.0,
                    checked,
                    pulls or 0,
                    pulled,
                    bool(pinned),
                    bool(in_list),
                    pushed,
                    who or "",
                )
            )
        return tuple(found)

    def _variant(self, digest: Digest, platform: str | None) -> Variant:
        row = self._db.execute("SELECT size, platform FROM item WHERE digest = ? AND manifest", (str(digest),)).fetchone()
        if row is None:
            return Variant(digest, platform, cached=False)
        config, layers = blobs_of(self._read(digest))
        own = None if config is None else self._layer(config)
        settings = None if config is None else parse_config(self._read(config.digest))
        return Variant(digest, platform or row[1], True, own, tuple(self._layer(layer) for layer in layers), settings)

    def _layer(self, descriptor: Descriptor) -> Layer:
        row = self._db.execute(
            "SELECT size IS NOT NULL, (SELECT count(DISTINCT root) FROM part WHERE part.item = item.id AND NOT EXISTS ("
            " SELECT 1 FROM part AS above WHERE above.item = part.root AND above.root != part.root)) FROM item WHERE digest = ?",
            (str(descriptor.digest),),
        ).fetchone()
        return Layer(descriptor, bool(row and row[0]), row[1] if row else 0)

    def _neighbours(self, number: int) -> tuple[Neighbour, ...]:
        common = dict(
            self._db.execute(
                "SELECT other.root, sum(size) FROM part AS own JOIN part AS other USING (item) JOIN item ON item.id = own.item"
                " WHERE own.root = ?1 AND other.root != ?1 AND size IS NOT NULL GROUP BY other.root",
                (number,),
            )
        )
        rows = self._db.execute(
            "SELECT id, registry, path, tag, digest FROM image WHERE +id IN (SELECT value FROM json_each(?))"
            " ORDER BY registry, path, tag",
            (json.dumps(list(common)),),
        )
        found = [
            Neighbour(f"{registry}/{path}{'@' if tag is None else ':'}{tag or digest}", Digest.parse(digest), common[root])
            for root, registry, path, tag, digest in rows
        ]
        return tuple(sorted(found, key=lambda neighbour: -neighbour.size))

    def _read(self, digest: Digest) -> bytes:
        file = self._store.open(digest)
        if file is None:
            return b""
        with contextlib.closing(file):
            return file.read_all() if file.size <= MAX_SIZE else b""
