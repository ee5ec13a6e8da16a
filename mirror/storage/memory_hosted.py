"""The part of the store in memory that keeps what was pushed."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mirror.errors import (
    DigestInvalid,
    HostedFull,
    InUse,
    ManifestInvalid,
    Pinned,
    ReferenceUnknown,
    TagImmutable,
    UploadBusy,
    UploadUnknown,
)
from mirror.manifests import Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.hosted import MOST_DESCRIBED, HostedCollected, HostedUsage, PushedManifest
from mirror.storage.settings import HostedRules
from mirror.storage.sightings import PUSHED_BY, HeldTag
from mirror.storage.store import TagRecord


class Kept(Protocol):
    """The store that has the content and the names."""

    content: dict[Digest, bytes]

    def keep(self, digest: Digest, content: bytes) -> None: ...
    def discard(self, digest: Digest) -> None: ...
    def is_pinned(self, repository: Repository, reference: Reference) -> bool: ...
    async def put_manifest(self, repository: Repository, manifest: Manifest, *, told: bool = True) -> None: ...
    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None: ...
    async def tags(self, repository: Repository) -> list[str]: ...
    async def set_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, seen: bool = True) -> None: ...
    async def note_tag(self, repository: Repository, tag: Tag, found: Descriptor, when: float) -> None: ...
    async def manifest(self, digest: Digest) -> Manifest | None: ...
    async def held(self, repository: Repository | None = None) -> list[HeldTag]: ...
    async def drop_tag(self, repository: Repository, tag: Tag, gone: float | None = None) -> None: ...


class MemoryUpload:
    """Implements `mirror.storage.hosted.Upload`."""

    def __init__(self, hosted: MemoryHosted, repository: Repository) -> None:
        self.id = secrets.token_hex(16)
        self.repository = repository
        self.content = b""
        self.busy = True
        self._hosted = hosted

    @property
    def size(self) -> int:
        return len(self.content)

    async def write(self, data: Sequence[bytes]) -> None:
        await self._hosted.check_room(sum(map(len, data)))
        self.content += b"".join(data)

    async def rewind(self, size: int) -> None:
        self.content = self.content[:size]

    async def commit(self, digest: Digest, who: str) -> None:
        if Digest.of(self.content, digest.algorithm) != digest:
            raise DigestInvalid(f"the upload is not {digest}")
        self._hosted.store.keep(digest, self.content)
        self._hosted.link(self.repository, digest)
        del self._hosted.uploads[self.id]

    async def discard(self) -> None:
        self._hosted.uploads.pop(self.id, None)

    def close(self) -> None:
        self.busy = False


class MemoryHosted:
    """Implements `mirror.storage.hosted.HostedStore`."""

    def __init__(self, store: Kept, rules: HostedRules) -> None:
        self.store = store
        self.uploads: dict[str, MemoryUpload] = {}
        self._rules = rules
        self._links: dict[tuple[Repository, Digest], float] = {}
        self._manifests: dict[tuple[Repository, Digest], PushedManifest] = {}

    @property
    def active(self) -> bool:
        return bool(self._rules.repositories)

    def covers(self, repository: Repository) -> bool:
        return self._rules.covers(repository)

    def take(self, rules: HostedRules) -> None:
        self._rules = rules

    def content(self) -> set[Digest]:
        """What is never evicted."""
        return {digest for _, digest in self._links}

    async def begin(self, repository: Repository, whose: str) -> MemoryUpload:
        await self.check_room(0)
        upload = MemoryUpload(self, repository)
        self.uploads[upload.id] = upload
        return upload

    async def resume(self, repository: Repository, upload: str, *, write: bool = True) -> MemoryUpload:
        found = self.uploads.get(upload)
        if found is None or found.repository != repository:
            raise UploadUnknown("there is no such upload")
        if write and found.busy:
            raise UploadBusy("another request is writing this upload")
        found.busy = found.busy or write
        return found

    async def check_room(self, size: int) -> None:
        usage = await self.usage()
        if usage.limit is not None and usage.content + usage.uploads + size > usage.limit:
            raise HostedFull("hosted.max_size is reached")

    def link(self, repository: Repository, digest: Digest) -> None:
        """Enters that a repository has content that is here."""
        self._links[repository, digest] = time.time()

    async def has(self, repository: Repository, digest: Digest) -> bool:
        return self.is_linked(repository, digest)

    def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether a repository has content that was pushed to it."""
        return (repository, digest) in self._links

    async def touch(self, repository: Repository, digest: Digest) -> bool:
        if (repository, digest) not in self._links:
            return False
        self.link(repository, digest)
        return True

    def holders(self, digest: Digest) -> set[Repository]:
        """The repositories that have something."""
        return {repository for repository, one in self._links if one == digest}

    async def mount(self, repository: Repository, digest: Digest, who: str) -> bool:
        if digest not in self.store.content:
            return False
        await self.check_room(0 if digest in self.content() else len(self.store.content[digest]))
        self.link(repository, digest)
        return True

    async def put_manifest(
        self, repository: Repository, pushed: PushedManifest, tags: Collection[str], who: str, *, served: bool = True
    ) -> None:
        digest = pushed.manifest.digest
        await self.check_room(len(pushed.manifest.body))
        if missing := [needed for needed in pushed.needed if (repository, needed) not in self._links]:
            raise ReferenceUnknown(f"{repository.path} does not have {missing[0]}")
        for named, size in pushed.sizes.items():
            manifest = await self.store.manifest(named)
            if size != len(self.store.content[named] if manifest is None else manifest.body):
                raise ManifestInvalid(f"{named} does not have {size} bytes")
        for tag in tags:
            before = await self.store.tag(repository, Tag(tag))
            if before is not None and before.descriptor.digest != digest:
                if self._rules.is_immutable(repository, tag):
                    raise TagImmutable(f"{repository.path}:{tag} is immutable")
                self.link(repository, before.descriptor.digest)
        await self.store.put_manifest(repository, pushed.manifest)
        self.link(repository, digest)
        self._manifests[repository, digest] = pushed
        for tag in tags:
            now, found = time.time(), replace(pushed.manifest.descriptor, endpoint=f"{PUSHED_BY}{who}")
            await self.store.note_tag(repository, Tag(tag), found, now)
            # Held back until it is decided on.
            await self.store.set_tag(repository, Tag(tag), TagRecord(found, now, None if served else now), seen=False)

    async def note_ruled(self, repository: Repository, tag: Tag, pushed: Digest, when: float, held_until: float | None) -> None:
        record = await self.store.tag(repository, tag)
        if record is not None and record.descriptor.digest == pushed:
            await self.store.set_tag(repository, tag, replace(record, held_until=held_until), seen=False)

    async def check_complete(self) -> None:
        """Does nothing: all there is is here."""

    async def tags(self, repository: Repository, after: str = "", count: int | None = None) -> list[str]:
        return sorted(tag for tag in await self.store.tags(repository) if tag > after)[:count]

    async def referrers(self, repository: Repository, subject: Digest) -> list[dict[str, Any]]:
        all_ = [one.described for (place, _), one in self._manifests.items() if place == repository and one.subject == subject]
        size, found = 0, []
        for described in sorted(all_, key=lambda described: len(json.dumps(described))):
            size += len(json.dumps(described))
            whole = size <= MOST_DESCRIBED
            found.append(described if whole else {key: value for key, value in described.items() if key != "annotations"})
        return found

    async def delete_tag(self, repository: Repository, tag: str) -> bool:
        record = await self.store.tag(repository, Tag(tag))
        if record is None:
            return False
        if self.store.is_pinned(repository, Tag(tag)):
            raise Pinned(f"{repository.path}:{tag} is pinned")
        if self._rules.is_immutable(repository, tag):
            raise TagImmutable(f"{repository.path}:{tag} is immutable")
        await self.store.drop_tag(repository, Tag(tag), time.time())
        self.link(repository, record.descriptor.digest)
        return True

    async def delete_manifest(self, repository: Repository, digest: Digest) -> bool:
        if (repository, digest) not in self._manifests:
            return False
        for tag in await self.store.tags(repository):
            record = await self.store.tag(repository, Tag(tag))
            if record is not None and record.descriptor.digest == digest:
                await self.delete_tag(repository, tag)
        if self.store.is_pinned(repository, digest):
            raise Pinned(f"{digest} is pinned")
        self._unlink(repository, digest)
        return True

    def forget(self, repository: Repository, digest: Digest) -> None:
        """Takes a manifest from a repository that may have it."""
        if (repository, digest) in self._manifests:
            self._unlink(repository, digest)

    def _unlink(self, repository: Repository, digest: Digest) -> None:
        del self._links[repository, digest]
        self._manifests.pop((repository, digest), None)

    async def delete_blob(self, repository: Repository, digest: Digest) -> bool:
        if (repository, digest) not in self._links:
            return False
        if any(place == repository and digest in one.children for (place, _), one in self._manifests.items()):
            raise InUse(f"a manifest names {digest}")
        self._unlink(repository, digest)
        return True

    async def usage(self) -> HostedUsage:
        content = sum(len(self.store.content[digest]) for digest in self.content())
        return HostedUsage(content, sum(upload.size for upload in self.uploads.values()), self._rules.max_size)

    async def collect(self) -> HostedCollected:
        manifests = blobs = size = 0
        now, before = time.time(), self.content()
        while unnamed := [
            key for key in self._manifests if self._links[key] < now - self._rules.untagged and not await self._named(*key)
        ]:
            manifests += len(unnamed)
            for key in unnamed:
                self._unlink(*key)
        for key in [key for key, used in self._links.items() if used < now - self._rules.grace and key not in self._manifests]:
            if not await self._named(*key):
                blobs += 1
                self._unlink(*key)
        for digest in before - self.content():
            size += len(self.store.content[digest])
            self.store.discard(digest)
        return HostedCollected((), manifests, blobs, size, 0)

    async def _named(self, repository: Repository, digest: Digest) -> bool:
        """By a tag, by a manifest, or by its subject; or it is served in place of what is held back."""
        for tag in await self.store.tags(repository):
            record = await self.store.tag(repository, Tag(tag))
            if record is not None and record.descriptor.digest == digest:
                return True
        here = [one for (place, _), one in self._manifests.items() if place == repository]
        own = self._manifests.get((repository, digest))
        subject = None if own is None else own.subject
        if digest in {held.served for held in await self.store.held(repository)}:
            return True
        return any(digest in one.children for one in here) or any(subject == one.manifest.digest for one in here)
