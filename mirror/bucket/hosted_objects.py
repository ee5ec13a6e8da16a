"""The objects of hosted repositories in a bucket: how they are written, and how what the disk has lost comes back from them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace

from mirror.bucket.reading import slices
from mirror.errors import DigestInvalid, Invalid, MirrorError, TagImmutable
from mirror.hosted.manifests import pushed_manifest
from mirror.manifests import INDEXES, Manifest, children_of
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.hosted import HostedStore, PushedManifest
from mirror.storage.outbox import Outbox
from mirror.storage.store import Store
from mirror.upstream.bucket import Bucket

log = logging.getLogger(__name__)

Changing = Callable[[Repository], AbstractAsyncContextManager[None]]
"""Held while one repository is changed, here and in the bucket."""
_RESTORE = "restored from the bucket"
"""Who has pushed what came back."""
_MOST_KNOWN = 100_000
_DAMAGED = (Invalid, TagImmutable, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What comes of an object that is not what a mirror has written."""


class HostedObjects:
    """Those of one mirror. Methods raise BucketFailed, and CatalogFailed."""

    def __init__(self, inner: HostedStore, store: Store, outbox: Outbox, bucket: Bucket, name: str) -> None:
        """The arguments are those of `DurableHosted`."""
        self._inner = inner
        self._store = store
        self._outbox = outbox
        self._bucket = bucket
        self._objects = bucket.objects
        self._name = name
        self._kept: dict[tuple[Repository | None, Digest], None] = {}
        """What is in the bucket: blobs, and manifests of repositories."""

    async def delete(self, repository: Repository, reference: Reference) -> None:
        """Deletes what a repository has no longer."""
        if isinstance(reference, Digest):
            self._kept.pop((repository, reference), None)
        await self._objects.delete(self._reference_key(repository, reference))
        await self._outbox.forget_gone(repository, reference)

    async def delete_gone(self, repository: Repository) -> None:
        """Deletes all that is gone of a repository. Call it where nobody else changes that."""
        while found := await self._outbox.gone(repository):
            for _, reference in found:
                await self.delete(repository, reference)

    async def delete_all_gone(self, changing: Changing) -> None:
        """Deletes what is gone of all repositories, whoever deleted it here."""
        while found := await self._outbox.gone():
            for repository in dict.fromkeys(repository for repository, _ in found):
                async with changing(repository):
                    await self.delete_gone(repository)

    async def keep(self, digest: Digest) -> None:
        """Writes a blob that is here, unless it is in the bucket."""
        if (None, digest) in self._kept or (reader := await self._store.open(digest)) is None:
            return
        try:
            key, size = _blob_key(digest), reader.size or 0
            if await self._objects.size(key) != size:
                async with aclosing(slices(reader)) as pieces:
                    await self._objects.put_file(key, pieces, size)
        finally:
            await reader.aclose()
        self._note(None, digest)

    def _note(self, repository: Repository | None, digest: Digest) -> None:
        if len(self._kept) >= _MOST_KNOWN:
            self._kept.clear()
        self._kept[repository, digest] = None

    async def write_manifest(self, repository: Repository, manifest: Manifest) -> None:
        """Writes a manifest that a repository has."""
        await self._objects.put(self._key("manifests", repository, _file(manifest.digest)), manifest.body, manifest.media_type)
        self._note(repository, manifest.digest)

    async def write_tag(self, repository: Repository, tag: str) -> None:
        """Writes what a tag means here."""
        record = await self._store.tag(repository, Tag(tag))
        if record is not None:
            told = {"digest": str(record.descriptor.digest), "pushed": record.checked}
            await self._objects.put(self._key("tags", repository, tag), json.dumps(told).encode(), "application/json")

    def _reference_key(self, repository: Repository, reference: Reference) -> str:
        if isinstance(reference, Digest):
            return self._key("manifests", repository, _file(reference))
        return self._key("tags", repository, reference.value)

    def _key(self, kind: str, repository: Repository, name: str) -> str:
        # No part of a repository's name is an underscore.
        return f"hosted/{self._name}/{kind}/{repository.registry}/{repository.path}/_/{name}"

    async def restore(self, changing: Changing) -> None:
        """Fetches what the bucket has and the disk lacks: blobs, then manifests, those that name others last, then tags in the order in which they were pushed. Not what is gone here,
        which is deleted there first, nor what another process deletes meanwhile."""
        await self.delete_all_gone(changing)
        lacking: dict[Repository, list[PushedManifest]] = {}
        for repository, name in await self._found("manifests"):
            with contextlib.suppress(DigestInvalid):
                digest = Digest.parse(name.replace("-", ":", 1))
                if not await self._is_whole(repository, digest):
                    body, media_type = await self._objects.get(self._key("manifests", repository, name)) or (b"", "")
                    with _logged(f"the manifest {digest} of {repository}"):
                        lacking.setdefault(repository, []).append(_pushed(body, media_type, digest))
        for repository, manifests in lacking.items():
            for one in sorted(manifests, key=lambda one: one.manifest.media_type in INDEXES):
                needed = _needed(one.manifest)
                for blob in children_of(one.manifest.body)[1]:
                    await self._restore_blob(repository, blob, is_needed=blob in needed)
                digest = one.manifest.digest
                async with changing(repository):
                    if await self._objects.size(
                        self._reference_key(repository, digest)
                    ) is not None and not await self._outbox.is_gone(repository, digest):
                        await self._inner.put_manifest(repository, one, (), _RESTORE)
        tags: list[tuple[float, Repository, str, Digest]] = []
        for repository, tag in await self._found("tags"):
            with _logged(f"the tag {tag!r} of {repository}"):
                if await self._store.tag(repository, Tag.parse(tag)) is None:
                    digest, pushed = await self._tag(repository, tag)
                    tags.append((pushed, repository, tag, digest))
        for _, repository, tag, _ in sorted(tags, key=lambda one: one[0]):
            async with changing(repository):
                with _logged(f"the tag {tag} of {repository}"):
                    await self._restore_tag(repository, Tag(tag))
        if lacking or tags:
            log.warning(
                "what %d hosted repositories lacked on the disk came back from the bucket %s, with %d tags",
                len(lacking),
                self._bucket.name,
                len(tags),
            )

    async def _restore_tag(self, repository: Repository, tag: Tag) -> None:
        if await self._store.tag(repository, tag) is not None or await self._outbox.is_gone(repository, tag):
            return
        digest, _ = await self._tag(repository, tag.value)
        # A repository may have what another one has only by its own manifest.
        if await self._inner.has(repository, digest) and (manifest := await self._store.manifest(digest)) is not None:
            one = _pushed(manifest.body, manifest.media_type, digest)
            await self._inner.put_manifest(repository, one, (tag.value,), _RESTORE)

    async def _tag(self, repository: Repository, tag: str) -> tuple[Digest, float]:
        """Returns what a tag means in the bucket, and when it was pushed. Raises what `_logged` catches if there is none."""
        body, _ = await self._objects.get(self._key("tags", repository, tag)) or (b"", "")
        told = json.loads(body)
        return Digest.parse(told["digest"]), float(told["pushed"])

    async def _found(self, kind: str) -> list[tuple[Repository, str]]:
        """Returns the repositories that live here, with what the bucket has of a kind for each."""
        prefix = f"hosted/{self._name}/{kind}/"
        found = []
        for key in await self._objects.keys(prefix):
            place, _, name = key.removeprefix(prefix).rpartition("/_/")
            registry, _, path = place.partition("/")
            with contextlib.suppress(MirrorError):
                repository = Repository.parse(registry, path)
                if self._inner.covers(repository):
                    found.append((repository, name))
        return found

    async def _is_whole(self, repository: Repository, digest: Digest) -> bool:
        manifest = await self._store.manifest(digest) if await self._inner.has(repository, digest) else None
        if manifest is None:
            return False
        return all(self._store.size(blob) is not None for blob in _needed(manifest))

    async def _restore_blob(self, repository: Repository, digest: Digest, *, is_needed: bool) -> None:
        if await self._inner.mount(repository, digest, _RESTORE):
            return
        if (size := await self._objects.size(_blob_key(digest))) is None:
            if is_needed:
                log.error("%s of %s is neither on the disk nor in the bucket: push it again", digest, repository)
            return
        upload = await self._inner.begin(repository, _RESTORE)
        with contextlib.closing(upload):
            try:
                async with aclosing(self._objects.pieces(_blob_key(digest), size)) as pieces:
                    async for piece in pieces:
                        await upload.write([piece])
                await upload.commit(digest, _RESTORE)
                self._note(None, digest)
            except DigestInvalid as error:
                await upload.discard()
                log.error("%s of %s cannot be restored from the bucket: %s", digest, repository, error)
            except BaseException:
                await upload.discard()
                raise

    async def write_all(self, changing: Changing) -> None:
        """Writes what was here before there was a bucket."""
        there = set(await self._found("tags"))
        for repository in [one for one in await self._store.repositories() if self._inner.covers(one)]:
            for tag in await self._inner.tags(repository):
                async with changing(repository):
                    if (record := await self._store.tag(repository, Tag(tag))) is None:
                        continue
                    if (repository, tag) in there:
                        with contextlib.suppress(*_DAMAGED):
                            if (await self._tag(repository, tag))[0] == record.descriptor.digest:
                                continue
                    await self.write_image(repository, record.descriptor.digest, set())
                    await self.write_tag(repository, tag)

    async def write_image(self, repository: Repository, digest: Digest, seen: set[Digest]) -> None:
        """Writes a manifest with all that it names, and what refers to it, but for what was `seen`."""
        if digest in seen or (repository, digest) in self._kept or (manifest := await self._store.manifest(digest)) is None:
            return
        seen.add(digest)
        manifests, blobs = children_of(manifest.body)
        for blob in blobs:
            await self.keep(blob)
        referrers = [Digest.parse(entry["digest"]) for entry in await self._inner.referrers(repository, digest)]
        for other in (*manifests, *referrers):
            await self.write_image(repository, other, seen)
        await self.write_manifest(repository, manifest)


def _pushed(body: bytes, media_type: str, digest: Digest) -> PushedManifest:
    """Returns a manifest as it was pushed, which is taken whatever of it is lost. Raises Invalid."""
    return replace(pushed_manifest(body, media_type or None, digest), needed=frozenset())


def _needed(manifest: Manifest) -> list[Digest]:
    """The blobs that a repository must have whose manifest it is: not those that registries do not have."""
    blobs = children_of(manifest.body)[1]
    try:
        needed = pushed_manifest(manifest.body, manifest.media_type or None, manifest.digest).needed
    except Invalid:
        # Not taken any more, but kept.
        return blobs
    return [blob for blob in blobs if blob in needed]


def _blob_key(digest: Digest) -> str:
    return f"hosted/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def _file(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}"


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Goes on without what is not what a mirror has written."""
    try:
        yield
    except _DAMAGED as error:
        log.error("%s cannot be restored from the bucket: %s", what, error)
