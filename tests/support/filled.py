"""A cache directory with many images, made without a registry: every manifest a real file, every layer a row of the catalog only."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mirror.manifests import OCI_INDEX, OCI_MANIFEST
from mirror.names import Digest
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from tests.support.patience import PATIENCE

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
TAGS = 10
"""Images in one repository."""
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x")
"""What each index lists; of them the first is cached."""


def fill(directory: Path, images: int) -> None:
    """`images` tags ``library/app-N:1.M``, each an index for PLATFORMS with three layers of its own, and four of a base that others have too."""
    chance = random.Random(7)
    store = BlobStore(directory)
    Catalog(directory / "catalog").close()
    db = sqlite3.connect(directory / "catalog" / "content.sqlite", timeout=PATIENCE)
    db.execute("PRAGMA synchronous = OFF")
    bases = [[_layer(f"base {base} {number}", chance) for number in range(4)] for base in range(max(1, images // 150))]
    for number in range(images):
        path, tag = f"library/app-{number // TAGS}", f"1.{number % TAGS}"
        layers = [*chance.choice(bases), *(_layer(f"own {number} {layer}", chance) for layer in range(3))]
        # One transaction each: a mirror that runs must not wait so long that it takes the catalog for broken.
        with db:
            index = _image(db, store, path, str(number), layers)
            now = time.time() - chance.randrange(100_000)
            size = len(Path(store.path(index)).read_bytes())
            db.execute("INSERT INTO tag VALUES ('docker.io', ?, ?, ?, ?, ?, ?)", (path, tag, str(index), OCI_INDEX, size, now))
            db.execute("INSERT INTO pull VALUES ('docker.io', ?, ?, ?, ?)", (path, tag, chance.randrange(1, 99), now))
    db.close()


def _image(db: sqlite3.Connection, store: BlobStore, path: str, name: str, layers: list[dict[str, Any]]) -> Digest:
    config = json.dumps({"os": "linux", "architecture": "amd64", "name": name}).encode()
    described = {"mediaType": _CONFIG, "digest": str(Digest.of(config)), "size": len(config)}
    manifest = _manifest({"mediaType": OCI_MANIFEST, "config": described, "layers": layers})
    entries = []
    for platform in PLATFORMS:
        os, architecture, *variant = platform.split("/")
        digest = Digest.of(manifest if platform == PLATFORMS[0] else f"{name} {platform}".encode())
        where = {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        entries.append({"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(manifest), "platform": where})
    index = _manifest({"mediaType": OCI_INDEX, "manifests": entries})
    _keep(db, store, config, None, ())
    _keep(db, store, manifest, OCI_MANIFEST, [described, *layers])
    _keep(db, store, index, OCI_INDEX, entries)
    for layer in layers:
        _row(db, layer["digest"], layer["size"], None)
    for held in (manifest, index):
        db.execute("INSERT OR IGNORE INTO holding VALUES ('docker.io', ?, ?)", (path, str(Digest.of(held))))
    return Digest.of(index)


def _manifest(body: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, **body}, indent=3).encode()


def _layer(name: str, chance: random.Random) -> dict[str, Any]:
    return {"mediaType": _LAYER, "digest": str(Digest.of(name.encode())), "size": chance.randrange(1000, 50_000_000)}


def _keep(db: sqlite3.Connection, store: BlobStore, body: bytes, media_type: str | None, children: Any) -> None:
    digest = Digest.of(body)
    Path(store.path(digest)).write_bytes(body)
    _row(db, str(digest), len(body), media_type)
    db.executemany("INSERT OR IGNORE INTO child VALUES (?, ?)", [(str(digest), child["digest"]) for child in children])


def _row(db: sqlite3.Connection, digest: str, size: int, media_type: str | None) -> None:
    db.execute(
        "INSERT OR IGNORE INTO content (digest, size, media_type, used) VALUES (?, ?, ?, ?)",
        (digest, size, media_type, time.time()),
    )


def each(images: int) -> Iterator[str]:
    """The names of what `fill` made."""
    for number in range(images):
        yield f"docker.io/library/app-{number // TAGS}:1.{number % TAGS}"
