"""Hosted repositories behind which there is a bucket: what is pushed is in it before the client hears 201, and comes back from it when the disk was lost.

A push is refused while the bucket does not take it (503). What was kept here before there was a bucket is written to it after the start. What the bucket has and the disk lacks is fetched then, and
meanwhile nothing is taken for absent, and no push or deletion is accepted: it would be undone. What is deleted here by whoever it is, a command or the rules of retention too, waits in the
catalog until the bucket has not got it either, so that it does not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from mirror.bucket.hosted_objects import HostedObjects
from mirror.errors import MirrorError
from mirror.manifests import children_of
from mirror.names import Digest, Repository, Tag
from mirror.storage.hosted import HostedCollected, HostedStore, HostedUsage, PushedManifest, Upload
from mirror.storage.outbox import Outbox
from mirror.storage.settings import HostedRules
from mirror.storage.store import Question, Store
from mirror.tasks import BackgroundTask
from mirror.upstream.bucket import Bucket
from mirror.upstream.objects import BucketFailed

log = logging.getLogger(__name__)

_AGAIN = 2.0
"""Seconds until a restoration that failed is tried again, and until it is looked again for what was deleted here."""


class NotDurable(MirrorError):
    """503: the bucket, where what is pushed must be, does not take it."""

    status = 503
    code = "UNAVAILABLE"


class DurableHosted:
    """Implements `mirror.storage.hosted.HostedStore` by another one, and the bucket."""

    def __init__(
        self, inner: HostedStore, store: Store, outbox: Outbox, bucket: Bucket, name: str, offline: Callable[[], bool]
    ) -> None:
        """`inner` and `outbox` are those of `store`. `name` is what this mirror is called in the bucket, always the same."""
        self._inner = inner
        self._store = store
        self._bucket = bucket
        self._objects = HostedObjects(inner, store, outbox, bucket, name)
        self._offline = offline
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._restoring = False
        self._serving = False
        self._begun = False
        self._task = BackgroundTask(self._synchronize)

    def start(self) -> None:
        """Begins to restore what the disk lacks."""
        self._serving = True
        self._begin()

    def _begin(self) -> None:
        if self._serving and self._inner.active and not self._begun:
            self._begun = self._restoring = True
            self._task.start()

    async def aclose(self) -> None:
        await self._task.aclose()

    # ------------------------------------------------------------------ as it is

    @property
    def active(self) -> bool:
        return self._inner.active

    def covers(self, repository: Repository) -> bool:
        return self._inner.covers(repository)

    def take(self, rules: HostedRules) -> None:
        self._inner.take(rules)
        self._begin()
        self.start()

    async def check_room(self, size: int) -> None:
        await self._inner.check_room(size)

    async def has(self, repository: Repository, digest: Digest) -> bool:
        return await self._inner.has(repository, digest)

    async def touch(self, repository: Repository, digest: Digest) -> bool:
        return await self._inner.touch(repository, digest)

    async def note_ruled(self, repository: Repository, tag: Tag, pushed: Digest, when: float, held_until: float | None) -> None:
        await self._inner.note_ruled(repository, tag, pushed, when, held_until)

    async def usage(self) -> HostedUsage:
        return await self._inner.usage()

    async def tags(self, repository: Repository, after: str = "", count: int | None = None) -> list[str]:
        return await self._inner.tags(repository, after, count)

    async def referrers(self, repository: Repository, subject: Digest) -> list[dict[str, Any]]:
        return await self._inner.referrers(repository, subject)

    async def check_complete(self) -> None:
        if self._restoring:
            raise NotDurable(
                f"what hosted repositories have is being looked for in the bucket {self._bucket.name}, and may not all be here yet: try again"
            )

    # ------------------------------------------------------------------ pushes

    async def begin(self, repository: Repository, whose: str) -> Upload:
        await self.check()
        return _DurableUpload(await self._inner.begin(repository, whose), self)

    async def resume(self, repository: Repository, upload: str, *, write: bool = True) -> Upload:
        return _DurableUpload(await self._inner.resume(repository, upload, write=write), self)

    async def mount(self, repository: Repository, digest: Digest, who: str) -> bool:
        await self.check()
        if not await self._inner.mount(repository, digest, who):
            return False
        with self._told():
            await self._objects.keep(digest)
        return True

    async def put_manifest(
        self, repository: Repository, pushed: PushedManifest, tags: Collection[str], who: str, *, served: bool = True
    ) -> None:
        await self.check()
        async with self._changing(repository):
            manifests, blobs = children_of(pushed.manifest.body)
            with self._told():
                # A client does not send what is here already, which may not be in the bucket.
                for blob in blobs:
                    await self._objects.keep(blob)
                for manifest in manifests:
                    await self._objects.write_image(repository, manifest, set())
            await self._inner.put_manifest(repository, pushed, tags, who, served=served)
            with self._told():
                await self._objects.write_manifest(repository, pushed.manifest)
                for tag in tags:
                    await self._objects.write_tag(repository, tag)

    async def delete_tag(self, repository: Repository, tag: str) -> bool:
        await self.check()
        async with self._changing(repository):
            deleted = await self._inner.delete_tag(repository, tag)
            with self._told():
                # Also if it is not here: the bucket may not have taken it before.
                await self._objects.delete(repository, Tag(tag))
        return deleted

    async def delete_manifest(self, repository: Repository, digest: Digest) -> bool:
        await self.check()
        async with self._changing(repository):
            deleted = await self._inner.delete_manifest(repository, digest)
            with self._told():
                # With the tags that meant it, also if the bucket has not taken that before.
                await self._objects.delete_gone(repository)
        return deleted

    async def delete_blob(self, repository: Repository, digest: Digest) -> bool:
        # It is fetched again only for a manifest that names it, and there is none.
        return await self._inner.delete_blob(repository, digest)

    async def collect(self) -> HostedCollected:
        return await self._inner.collect()

    async def check(self) -> None:
        """Returns if the bucket takes pushes, as far as is known. Raises NotDurable."""
        if self._offline():
            raise NotDurable(
                f"this mirror is offline (upstream.offline), so what is pushed cannot be kept in the bucket {self._bucket.name} (fleet.bucket)"
            )
        if not await self._bucket.answers():
            raise NotDurable(f"what is pushed must be in the bucket {self._bucket.name}, which does not work: {self._bucket.why}")
        if self._restoring:
            raise NotDurable(
                f"what was pushed before is being looked for in the bucket {self._bucket.name}: push again in a while"
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BucketFailed as error:
            self._bucket.refused = error.message
            self._bucket.start()
            raise NotDurable(f"what was pushed must be in the bucket, and is not: {error.message}; push again") from None

    @contextlib.asynccontextmanager
    async def _changing(self, repository: Repository) -> AsyncIterator[None]:
        """One change of a repository at a time, in all processes: the bucket sees them in the same order as the catalog."""
        key = f"hosted {repository}"
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock, self._store.lock(Question.FETCH, key):
            yield

    # ------------------------------------------------------------------ what is written

    async def keep(self, digest: Digest) -> None:
        """Writes a blob to the bucket, or what is named as one, unless it is there. Raises NotDurable."""
        with self._told():
            await self._objects.keep(digest)

    # ------------------------------------------------------------------ after a start

    async def _synchronize(self) -> None:
        complete = False
        while True:
            try:
                if complete and self._bucket.alive and not self._offline():
                    await self._objects.delete_all_gone(self._changing)
                elif not complete and not self._offline():
                    # Not a FETCH, under which no other lock may be waited for.
                    async with self._store.lock(Question.CHECK, "hosted"):
                        await self._objects.restore(self._changing)
                    self._restoring = False
                    await self._objects.write_all(self._changing)
                    complete = True
            except MirrorError as error:
                log.error(
                    "what hosted repositories have is not yet the same here and in the bucket, which is tried again: %s", error
                )
            await asyncio.sleep(_AGAIN)


class _DurableUpload:
    """Implements `mirror.storage.hosted.Upload`."""

    def __init__(self, inner: Upload, hosted: DurableHosted) -> None:
        self.id = inner.id
        self._inner = inner
        self._hosted = hosted

    @property
    def size(self) -> int:
        return self._inner.size

    async def write(self, data: Sequence[bytes]) -> None:
        await self._inner.write(data)

    async def rewind(self, size: int) -> None:
        await self._inner.rewind(size)

    async def commit(self, digest: Digest, who: str) -> None:
        await self._hosted.check()
        await self._inner.commit(digest, who)
        await self._hosted.keep(digest)

    async def discard(self) -> None:
        await self._inner.discard()

    def close(self) -> None:
        self._inner.close()
