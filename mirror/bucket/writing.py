"""Writes to the bucket what has been published here, behind it: whatever the bucket does, nobody waits for this.

In a fleet, the first mirror for a content or a tag writes it, and who has fetched it from outside of the fleet, since the first did not give it: so each download has one that writes. What is there already
is not sent again: it is asked for by HEAD, unless it was read from there.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import aclosing

from mirror import metrics
from mirror.backoff import doubled
from mirror.bucket.reading import slices
from mirror.errors import CatalogFailed, MirrorError
from mirror.manifests import DOCKER_SCHEMA1_SIGNED
from mirror.names import Digest, Repository, Tag
from mirror.storage.outbox import Entry, Outbox
from mirror.storage.slices import Reader
from mirror.storage.store import Store, TagRecord
from mirror.tasks import BackgroundTask
from mirror.upstream.bucket import Bucket
from mirror.upstream.fleet import Fleet, name_of
from mirror.upstream.objects import BucketFailed, blob_key, manifest_key, tag_key

log = logging.getLogger(__name__)

_AT_ONCE = 4
"""Entries that are written at the same time."""
_INTERVAL = 0.5
"""Seconds between two looks at an empty queue."""
_LEADING = 5.0
"""Seconds after which it is looked whether the process that writes has ended."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds until what failed is tried again."""
_AGAIN = 3600.0
"""Seconds for which a tag that means the same is not written again: each check of its registry would be a request that costs money."""


class Writing:
    """Empties the queue of one cache directory."""

    def __init__(
        self,
        bucket: Bucket,
        fleet: Fleet,
        outbox: Outbox,
        store: Store,
        is_private: Callable[[str | None], bool],
        offline: Callable[[], bool],
    ) -> None:
        """`is_private` says of a registry whether what it gives is for one client and not for all, so that nobody may get it from the bucket; None is one that is not known. While `offline`,
        nothing is sent."""
        self._bucket = bucket
        self._objects = bucket.objects
        self._fleet = fleet
        self._outbox = outbox
        self._store = store
        self._is_private = is_private
        self._offline = offline
        self._failures = 0
        self._task = BackgroundTask(self._lead)
        self._wrong: set[asyncio.Task[None]] = set()
        self._sent = {kind: metrics.bucket_sent_bytes.labels(bucket.name, kind) for kind in ("blob", "manifest", "tag")}
        self._errors = metrics.bucket_errors.labels(bucket.name, "write")
        self._waiting = metrics.bucket_waiting.labels(bucket.name)
        self._dropped = metrics.bucket_dropped.labels(bucket.name)
        bucket.on_wrong = self._note_wrong
        fleet.on_fetched = outbox.note_fetched

    def start(self) -> None:
        self._task.start()

    async def aclose(self) -> None:
        await self._task.aclose()
        for task in tuple(self._wrong):
            await asyncio.wait([task])

    def _note_wrong(self, digest: Digest) -> None:
        task = asyncio.create_task(self._outbox.note_wrong(digest))
        self._wrong.add(task)
        task.add_done_callback(self._wrong.discard)

    # ------------------------------------------------------------------ the queue

    async def _lead(self) -> None:
        while True:
            try:
                with self._outbox.lead():
                    await self._empty()
            except OSError:
                await asyncio.sleep(_LEADING)

    async def _empty(self) -> None:
        while True:
            try:
                waiting, dropped = await self._outbox.counts()
                self._waiting.set(waiting)
                if dropped:
                    self._dropped.inc(dropped)
                    log.warning("%d objects were not written to the bucket %s, since too many wait", dropped, self._bucket.name)
                found = await self._outbox.take(_AT_ONCE) if waiting and self._bucket.alive and not self._offline() else []
                failed = [entry for entry in await asyncio.gather(*map(self._write, found)) if entry is not None]
                for entry in failed:
                    await self._outbox.put_back(entry)
            except CatalogFailed as error:
                log.warning("what waits to be written to the bucket cannot be read: %s", error)
                found, failed = [], []
            if failed:
                await asyncio.sleep(doubled(_FIRST_PAUSE, self._failures, _LONGEST_PAUSE))
                self._failures += 1
            elif found:
                self._failures = 0
            else:
                await asyncio.sleep(_INTERVAL)

    async def _write(self, entry: Entry) -> Entry | None:
        """Writes one entry, and removes it. Returns it if it could not be written."""
        try:
            if isinstance(entry.reference, Digest):
                await self._write_content(entry, entry.reference)
            elif entry.repository is not None:
                await self._write_tag(entry, entry.repository, entry.reference)
        except (MirrorError, OSError) as error:
            self._errors.inc()
            if isinstance(error, BucketFailed):
                if not self._bucket.refused:
                    log.warning("%s cannot be written to the bucket, and is tried again: %s", entry.reference, error)
                self._bucket.refused = error.message
                # It may be down: then nothing is tried until it is back.
                self._bucket.start()
            else:
                log.warning("%s is not written to the bucket now: %s", entry.reference, error)
            return entry
        except Exception:
            # What nobody expects of one entry must not keep the others from being written.
            log.exception("%s cannot be written to the bucket, and is tried again", entry.reference)
            self._errors.inc()
            return entry
        await self._outbox.done(entry)
        return None

    # ------------------------------------------------------------------ what is written

    async def _write_content(self, entry: Entry, digest: Digest) -> None:
        known = digest in self._bucket.known and not entry.is_wrong
        # What was pushed is written otherwise, see hosting.py.
        if not entry.is_cached or entry.is_hosted or known:
            return
        # Wrong bytes are put right by who has found them.
        if not (entry.is_fetched or entry.is_wrong or self._fleet.is_home(digest)):
            return
        # After the catalog was lost, nobody knows whose it is. Once that is known, it is queued again.
        registries: list[str | None] = [holder.registry for holder in await self._store.holders(digest)]
        if all(map(self._is_private, registries or [None])):
            return
        if entry.is_manifest:
            await self._write_manifest(digest, entry.is_wrong)
        elif (reader := await self._store.open(digest)) is not None:
            try:
                await self._write_blob(digest, reader, entry.is_wrong)
            finally:
                await reader.aclose()

    async def _write_manifest(self, digest: Digest, is_wrong: bool) -> None:
        manifest = await self._store.manifest(digest)
        # Of a signed one of schema 1, the digest names a part of the bytes only.
        if manifest is None or manifest.media_type == DOCKER_SCHEMA1_SIGNED:
            return
        key = manifest_key(digest)
        if is_wrong or await self._objects.size(key) != len(manifest.body):
            await self._objects.put(key, manifest.body, manifest.media_type)
            self._note_sent("manifest", len(manifest.body))
        self._bucket.note(digest)

    async def _write_blob(self, digest: Digest, reader: Reader, is_wrong: bool) -> None:
        key, size = blob_key(digest), reader.size or 0
        if is_wrong or await self._objects.size(key) != size:
            async with aclosing(slices(reader)) as pieces:
                await self._objects.put_file(key, pieces, size)
            self._note_sent("blob", size)
        self._bucket.note(digest)

    async def _write_tag(self, entry: Entry, repository: Repository, tag: Tag) -> None:
        if self._store.hosted.covers(repository) or self._is_private(repository.registry):
            return
        if not (entry.is_fetched or self._fleet.is_home(None, name_of(repository, tag))):
            return
        record = await self._store.tag(repository, tag)
        # What clients get while something is held back is not what the registry says.
        if record is None or record.held_until is not None:
            return
        found = record.descriptor
        if _is_told(record, self._bucket.known_tags.get((repository, tag))):
            return
        # Another mirror may have written a later word of the registry.
        if _is_told(record, await self._bucket.written_tag(repository, tag)):
            return
        told = {"digest": str(found.digest), "mediaType": found.media_type, "size": found.size, "checked": record.checked}
        body = json.dumps(told).encode()
        await self._objects.put(tag_key(repository, tag), body, "application/json")
        self._note_sent("tag", len(body))
        self._bucket.note_tag(repository, tag, found.digest, record.checked)

    def _note_sent(self, kind: str, size: int) -> None:
        self._sent[kind].inc(size)
        self._bucket.refused = ""


def _is_told(record: TagRecord, written: tuple[Digest, float] | None) -> bool:
    """Returns whether what is written of a tag, and when its registry was asked for that, leaves nothing to write."""
    if written is None:
        return False
    digest, checked = written
    return record.checked - checked < (_AGAIN if digest == record.descriptor.digest else 0.0)
