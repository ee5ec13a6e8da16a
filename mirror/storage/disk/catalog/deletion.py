"""Deleting an image from the catalog and the disk: see `Store.delete`."""

from __future__ import annotations

import time

from mirror.errors import ManifestUnknown, Pinned
from mirror.events import Action, Event
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.disk.blobs import BlobStore
from mirror.storage.disk.catalog.catalog import Catalog
from mirror.storage.store import Deleted


def delete(catalog: Catalog, blobs: BlobStore, repository: Repository, reference: Reference, force: bool) -> Deleted:
    """In the catalog's thread, while nobody else removes content. Raises ManifestUnknown, Pinned, OSError, sqlite3.Error."""
    with catalog.changing():
        named = catalog.removal.find(repository, reference)
        if named is None:
            raise ManifestUnknown(f"nothing is cached of {image_name(repository, reference)}")
        if named.pinned and not force:
            raise Pinned(f"{image_name(repository, reference)} is pinned: unpin it first, or force it")
        if named.list is not None and not force:
            raise Pinned(
                f"{image_name(repository, reference)} is in the list {named.list} of [[warm]]: remove it there, or force it"
            )
        if catalog.hosted.has(repository, named.digest):
            # A registry's tag goes on to be there.
            for tag in named.tags:
                catalog.sightings.note_gone(repository, tag, time.time())
        catalog.removal.forget_names(repository, reference, named)
        if catalog.hosted.has(repository, named.digest) and catalog.removal.find(repository, named.digest) is None:
            # Its blobs go at the next collection: a push may be about to name them.
            catalog.hosted.unlink(repository, [named.digest])
        gone, kept = catalog.removal.exclusive_content(repository, named.digest)
        for name in gone:
            digest = Digest.parse(name)
            blobs.unlink(digest)
            catalog.drop(digest)
        catalog.changed.deleted_here()
    catalog.events.send(
        Event(
            Action.DELETE,
            repository,
            tag=reference.value if isinstance(reference, Tag) else "",
            digest=named.digest,
            details={"tags": list(named.tags)},
        )
    )
    return Deleted(named.digest, named.tags, sum(gone.values()), kept)
