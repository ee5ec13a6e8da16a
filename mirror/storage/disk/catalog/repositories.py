"""Images by repository, the most pulled ones, and the image that a blob under way belongs to. SQL over the view ``image`` (inventory.py)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable

from mirror.manifests import blobs_of
from mirror.names import Digest, Repository
from mirror.storage.inventory import Page, Pulled, RepositoryLine, UnderWay

_SHOWN = 6
"""Tags that are listed for a repository."""

_PAGE = """
SELECT registry, path, count(*), sum(pinned OR listed), max(fetched), total(pulls), max(pulled), count(*) OVER () FROM image
GROUP BY registry, path
ORDER BY CASE ? WHEN 'pulled' THEN -coalesce(max(pulled), 0) WHEN 'fetched' THEN -max(fetched) WHEN 'pinned' THEN -max(pinned OR listed) WHEN 'size' THEN -(
    SELECT sum(size) FROM item WHERE id IN (
        SELECT part.item FROM holding JOIN item AS root ON root.digest = holding.digest JOIN part ON part.root = root.id
        WHERE holding.registry = image.registry AND holding.path = image.path)) END, registry, path
LIMIT ? OFFSET ?
"""
_IMAGES = """
SELECT tag, digest, id FROM image WHERE registry = ? AND path = ?
ORDER BY tag IS NULL, coalesce(pulled, 0) DESC, fetched DESC, tag, digest
"""
_CONTENT = """
SELECT place, total(size), group_concat(DISTINCT platform) FROM (
    SELECT DISTINCT json_extract(root.value, '$[0]') AS place, part.item AS id
    FROM json_each(?) AS root JOIN part ON part.root = json_extract(root.value, '$[1]')
) JOIN item USING (id) GROUP BY place
"""
_MOST_PULLED = "SELECT registry, path, reference, count, last FROM pull ORDER BY count DESC, last DESC LIMIT ?"
_NAMING = """
SELECT child.digest, child.parent, item.platform FROM child
JOIN holding ON holding.digest = child.parent AND holding.registry = ?1 AND holding.path = ?2
JOIN content ON content.digest = child.parent LEFT JOIN item ON item.digest = child.parent
WHERE child.digest IN (SELECT value FROM json_each(?3)) ORDER BY content.used DESC
"""
_TAG_OF = """
SELECT tag FROM tag LEFT JOIN pull ON pull.registry = tag.registry AND pull.path = tag.path AND pull.reference = tag
WHERE tag.registry = ?1 AND tag.path = ?2 AND (digest = ?3 OR digest IN (SELECT parent FROM child WHERE child.digest = ?3))
ORDER BY coalesce(pull.last, 0) DESC, checked DESC LIMIT 1
"""

_HOLDER = """
SELECT registry, path FROM (SELECT registry, path FROM holding WHERE digest = ?1
    UNION ALL SELECT registry, path FROM holding JOIN child ON child.parent = holding.digest WHERE child.digest = ?1) AS found
ORDER BY EXISTS (SELECT 1 FROM hosted WHERE hosted.registry = found.registry AND hosted.path = found.path) LIMIT 1
"""


def holder(db: sqlite3.Connection, digest: Digest) -> Repository | None:
    """A repository that is known to hold something: a manifest, or what a manifest names that it holds. One that lives here cannot give it again, and comes last."""
    row = db.execute(_HOLDER, (str(digest),)).fetchone()
    return Repository(*row) if row else None


def read_page(db: sqlite3.Connection, order: str, start: int, count: int) -> Page[RepositoryLine]:
    """Returns at most `count` repositories from `start` on; `order` is one of inventory.ORDERS."""
    rows = db.execute(_PAGE, (order, count, start)).fetchall()
    if not rows:
        total = db.execute("SELECT count(*) FROM (SELECT 1 FROM image GROUP BY registry, path)").fetchone()[0] if start else 0
        return Page((), total)
    images: list[list[str]] = []
    roots = []
    for place, row in enumerate(rows):
        held = db.execute(_IMAGES, row[:2]).fetchall()
        images.append([f"@{digest}" if tag is None else f":{tag}" for tag, digest, _ in held[:_SHOWN]])
        roots += [(place, number) for _, _, number in held]
    content = {row[0]: row[1:] for row in db.execute(_CONTENT, (json.dumps(roots),))}
    lines = []
    for place, (registry, path, many, pinned, fetched, pulls, pulled, _) in enumerate(rows):
        size, platforms = content.get(place, (0, None))
        lines.append(
            RepositoryLine(
                Repository(registry, path),
                many,
                tuple(images[place]),
                tuple(sorted(platforms.split(","))) if platforms else (),
                int(size),
                pinned or 0,
                fetched or 0.0,
                int(pulls),
                pulled,
            )
        )
    return Page(tuple(lines), rows[0][-1])


def most_pulled(db: sqlite3.Connection, count: int) -> tuple[Pulled, ...]:
    """Returns what clients have asked for most often."""
    return tuple(
        Pulled(f"{registry}/{path}{'@' if ':' in reference else ':'}{reference}", pulls, last)
        for registry, path, reference, pulls, last in db.execute(_MOST_PULLED, (count,))
    )


def under_way(
    db: sqlite3.Connection, read: Callable[[Digest], bytes], repository: Repository, digests: Iterable[str]
) -> dict[str, UnderWay]:
    """Returns, by digest, the image of a repository that each blob belongs to. Blobs that no cached manifest names are left out.

    Where several images have a blob, it counts for the one that has most of these, and then for the one used last. `read` gives a manifest's bytes.
    """
    key = repository.registry, repository.path
    parents: dict[str, set[str]] = {}
    platforms: dict[str, str | None] = {}
    for digest, parent, platform in db.execute(_NAMING, (*key, json.dumps(list(digests)))):
        parents.setdefault(parent, set()).add(digest)
        platforms[parent] = platform
    found: dict[str, UnderWay] = {}
    # Parents with as many blobs stay in the order of the rows.
    for parent in sorted(parents, key=lambda parent: -len(parents[parent])):
        if new := parents[parent] - found.keys():
            config, layers = blobs_of(read(Digest.parse(parent)))
            blobs = {str(blob.digest): blob.size for blob in (*([config] if config else []), *layers)}
            names = json.dumps(list(blobs))
            cached = db.execute("SELECT digest FROM content WHERE digest IN (SELECT value FROM json_each(?))", (names,))
            tag = db.execute(_TAG_OF, (*key, parent)).fetchone()
            image = f"{repository}:{tag[0]}" if tag else f"{repository}@{parent}"
            whole = UnderWay(image, platforms[parent], blobs, frozenset(row[0] for row in cached))
            found.update(dict.fromkeys(new, whole))
    return found
