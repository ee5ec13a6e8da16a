"""A bucket as a place of content: it is asked after other mirrors and before a registry, by URLs that are signed for one request each, and read like every other upstream.

What it has not got is not there, and nothing more is concluded from that. One that is down, slow or says no is left at once, and looked at each second until it is well: it never is the reason
that a pull fails, and delays one at most by `PATIENCE`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from mirror import metrics
from mirror.errors import (
    DigestInvalid,
    DigestMismatch,
    MirrorError,
    Offline,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamStalled,
    UpstreamTimeout,
)
from mirror.manifests import MAX_SIZE, MEDIA_TYPES, Descriptor, Manifest
from mirror.names import Digest, Repository, Tag
from mirror.tasks import close_all
from mirror.upstream.blobs import Head, begin_delivery, content_range, range_headers
from mirror.upstream.documents import verified
from mirror.upstream.health import Delivery, Lease
from mirror.upstream.objects import Objects, blob_key, manifest_key, tag_key
from mirror.upstream.places import NotThere, PlaceStream
from mirror.upstream.proxies import Proxies
from mirror.upstream.rates import Share
from mirror.upstream.receiver import Response
from mirror.upstream.streams import BlobStream
from mirror.upstream.transport import Transport, length_of, read_bounded, shown
from mirror.upstream.watch import Watch

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds for an answer, and for more of a body."""
_LEAST = 128 * 1024
"""Bytes that come in `PATIENCE`, at least, where they are waited for: one that sends less is slower than most registries."""
_SLOW_FOR = 60.0
"""Seconds for which a bucket is not asked that was slow, since looking at it does not tell."""
_STALLS = 2
"""Requests without an answer, between which it answered looks, but gave no object, after which it is slow."""
_PROBE = "mirror"
"""An object that need not be there."""
_ABSENT = (b"NoSuchKey", b"BlobNotFound")
"""Codes of a 404 where a bucket has not got an object; there are others, for a bucket that is none."""
_LARGEST_TAG = 64 * 1024
_AHEAD = 60.0
"""Seconds by which another machine's clock may be ahead."""
_MOST_SECONDS = 10**9
_MOST_KNOWN = 100_000


class Bucket:
    """One bucket. What its methods raise is UpstreamError, and says nothing of the registry."""

    is_peer = False

    def __init__(
        self, objects: Objects, transport: Transport, tls: ssl.SSLContext | None, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises OSError if the environment names a proxy that cannot be used."""
        self.name = objects.url
        self.objects = objects
        self.delivery = Delivery()
        transport.deliveries.append(self.delivery)
        self.why = ""
        """What was wrong with it last."""
        self.refused = ""
        """Why nothing can be written to it; empty if the last object was."""
        self.known: OrderedDict[Digest, None] = OrderedDict()
        """What is seen to be there."""
        self.known_tags: OrderedDict[tuple[Repository, Tag], tuple[Digest, float]] = OrderedDict()
        """What it says that tags mean, and when their registries were asked."""
        self.on_wrong: Callable[[Digest], None] = lambda digest: None
        """Called with what it has in wrong bytes."""
        self.named_sizes: Callable[[Digest], Awaitable[Collection[int]]] | None = None
        """Returns what sizes in bytes manifests say that a blob has; none where nobody knows."""
        self._transport = transport
        self._tls = tls
        self.way = Proxies()
        """The way out to it, which is also that of the library that writes to it."""
        self._clock = clock
        self._slow_until = float("-inf")
        self._stalls = 0
        """Requests without an answer since it gave an object."""
        self._is_slow = False
        self._up = metrics.bucket_up.labels(self.name)
        self._up.set(1)
        self._watch = Watch(f"the bucket {self.name}", self.look, self._changed, lambda: self.why)
        self._received = {kind: metrics.bucket_received_bytes.labels(self.name, kind) for kind in ("blob", "manifest")}
        self._errors = metrics.bucket_errors.labels(self.name, "read")

    def start(self) -> None:
        """Looks whether it can be used."""
        self._watch.look_now()

    async def aclose(self) -> None:
        await close_all(self._watch.aclose, self.objects.aclose)

    @property
    def alive(self) -> bool:
        is_slow = time.monotonic() < self._slow_until
        if is_slow != self._is_slow:
            self._is_slow = is_slow
            self._changed(self._watch.alive)
        return self._watch.alive and not is_slow

    def _changed(self, lives: bool) -> None:
        self._up.set(lives and not self._is_slow)

    async def answers(self) -> bool:
        """Returns whether it answers now, as it should: for whoever cannot do without it."""
        if self.alive and not await self.look():
            self._watch.note_dead()
        return self.alive

    @property
    def fault(self) -> str:
        """A sentence about what does not work; empty if all does."""
        if not self.alive:
            return f"the bucket {self.name} is not used: {self.why}; the registries are asked"
        return f"the bucket {self.name} does not take what is written to it, which waits: {self.refused}" if self.refused else ""

    def note(self, digest: Digest) -> None:
        """Takes note that it has this."""
        self.known[digest] = None
        if len(self.known) > _MOST_KNOWN:
            self.known.popitem(last=False)

    def note_tag(self, repository: Repository, tag: Tag, digest: Digest, checked: float) -> None:
        """Takes note that it says what a tag means."""
        self.known_tags[repository, tag] = digest, checked
        if len(self.known_tags) > _MOST_KNOWN:
            self.known_tags.popitem(last=False)

    def note_wrong(self, digest: Digest) -> None:
        """Call this when its bytes were wrong: they are written anew once the right ones are here."""
        log.warning("the bucket %s has wrong bytes for %s: they are fetched elsewhere, and put right", self.name, digest)
        self.known.pop(digest, None)
        self.on_wrong(digest)

    def note_failure(self, error: MirrorError) -> None:
        """Call this when it did not do what it should. It is not used until it answers a look."""
        self.why = error.message
        self._watch.note_dead()

    def note_stalled(self, error: MirrorError) -> None:
        """Call this when it gave no answer, or no more of one."""
        if self._watch.alive:
            # Others that wait at the same time tell nothing new.
            self._stalls += 1
        self.note_failure(error)
        if self._stalls >= _STALLS:
            self._slow_until = time.monotonic() + _SLOW_FOR

    def note_given(self) -> None:
        """Call this when it has given an object."""
        self._stalls = 0

    # ------------------------------------------------------------------ documents

    async def head_manifest(self, repository: Repository, digest: Digest) -> Descriptor:
        return (await self.get_manifest(repository, digest)).descriptor

    async def get_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """Returns a verified manifest. Raises UpstreamError."""
        response, body = await self._document(manifest_key(digest), MAX_SIZE)
        self._received["manifest"].inc(len(body))
        try:
            found = verified(response, body, digest, self.name, repository.registry)
        except DigestMismatch:
            self.note_wrong(digest)
            raise
        self.note(digest)
        return found

    async def get_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        """Returns what a tag meant when its registry was last asked, with the `age` of that. Raises UpstreamError."""
        key = tag_key(repository, tag)
        _, body = await self._document(key, _LARGEST_TAG)
        try:
            found: dict[str, Any] = json.loads(body)
            digest, media_type, size, checked = Digest.parse(found["digest"]), found["mediaType"], found["size"], found["checked"]
            if media_type not in MEDIA_TYPES or type(size) is not int or not 0 < size <= MAX_SIZE:
                raise ValueError(media_type)
            checked, now = float(checked), self._clock()
            # One from the future is another machine's clock, and says nothing.
            age = min(max(math.ceil(now - checked), 0), _MOST_SECONDS) if checked <= now + _AHEAD else _MOST_SECONDS
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError, DigestInvalid):
            raise UpstreamInvalid(f"{key} in {self.name} is not what a mirror has written") from None
        # Else it would never be written anew.
        self.note_tag(repository, tag, digest, checked if age < _MOST_SECONDS else 0.0)
        return Descriptor(media_type, digest, size, self.name, age)

    async def written_tag(self, repository: Repository, tag: Tag) -> tuple[Digest, float] | None:
        """Returns what a tag means here, and when its registry was asked; None if there is nothing, or nothing that a mirror has written. Raises UpstreamError."""
        try:
            await self.get_tag(repository, tag)
        except (NotThere, UpstreamInvalid):
            self.known_tags.pop((repository, tag), None)
            return None
        return self.known_tags.get((repository, tag))

    async def head_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """Returns the size of a blob. Raises UpstreamError."""
        response = await self._send("HEAD", blob_key(digest), {})
        response.release()
        self._check(response)
        if (size := length_of(response)) is None:
            raise UpstreamInvalid(f"{shown(response.url)} does not say the size of the blob")
        self._check_size(digest, size, await self._named_sizes(digest))
        return Descriptor("application/octet-stream", digest, size)

    async def has_all(self, repository: Repository, digest: Digest) -> bool:
        """Returns True: what is in a bucket is there as a whole."""
        return True

    # ------------------------------------------------------------------ blobs

    async def open(
        self,
        repository: Repository,
        digest: Digest,
        start: int,
        stop: int | None,
        share: Share,
        ended: Callable[[MirrorError | None], None],
    ) -> PlaceStream:
        """Requests the bytes ``[start, stop)``, as `Place.open` does."""
        headers = range_headers(start, stop)

        def read_head(response: Response) -> Head:
            self._check(response)
            whole = response.status == 200
            size, first = (length_of(response) or 0, 0) if whole else content_range(response, start, stop)
            if size is not None:
                self._check_size(digest, size, named)
            return size, first

        named = await self._named_sizes(digest)
        lease = await self.delivery.lease()
        (size, first), response = await begin_delivery(
            self.delivery, lease, lambda: self._send("GET", blob_key(digest), headers), read_head
        )
        self.note(digest)
        return self._stream(response, size, first, lease, share, ended)

    async def _named_sizes(self, digest: Digest) -> Collection[int]:
        return await self.named_sizes(digest) if self.named_sizes is not None else ()

    def _check_size(self, digest: Digest, size: int, named: Collection[int]) -> None:
        """Raises UpstreamInvalid for what cannot be the blob, before clients are told of its size."""
        is_right = size in named if named else size > 0 or digest == Digest.of(b"", digest.algorithm)
        if not is_right:
            self.note_wrong(digest)
            raise UpstreamInvalid(f"{self.name} has {size} bytes for {digest}, which is of another size")

    def _stream(
        self,
        response: Response,
        size: int | None,
        first: int,
        lease: Lease,
        share: Share,
        ended: Callable[[MirrorError | None], None],
    ) -> PlaceStream:
        limiter = self._transport.limiter
        stream = BlobStream(response, size, first, PATIENCE, self._received["blob"], self.name, lease, limiter, share)
        return _BucketStream(stream, self, limiter.capped(share.registry), ended)

    def note_slow(self) -> UpstreamStalled:
        """Leaves it for a while; returns the error for whoever waits."""
        error = UpstreamStalled(f"the bucket {self.name} sends less than {_LEAST // 1024} KiB in {PATIENCE:g} s")
        self.why = error.message
        self._slow_until = time.monotonic() + _SLOW_FOR
        return error

    # ------------------------------------------------------------------ requests

    async def _document(self, key: str, limit: int) -> tuple[Response, bytes]:
        response = await self._send("GET", key, {})
        try:
            self._check(response)
            try:
                body = await read_bounded(response, limit, PATIENCE)
                self.note_given()
                return response, body
            except UpstreamInvalid:
                raise
            except UpstreamError as error:
                raise self._left(error) from None
        finally:
            response.release()

    async def _send(self, method: str, key: str, headers: dict[str, str]) -> Response:
        self._transport.check_online()
        try:
            async with asyncio.timeout(PATIENCE):
                url = await self.objects.sign(method, key)
                return await self._transport.request(method, url, headers, tls=self._tls, timeout=PATIENCE, way=self.way)
        except Offline:
            raise
        except TimeoutError:
            raise self._left(UpstreamTimeout(f"it did not answer in {PATIENCE:g} s")) from None
        except UpstreamError as error:
            raise self._left(error) from None

    def _left(self, error: UpstreamError) -> UpstreamError:
        self._errors.inc()
        if isinstance(error, UpstreamTimeout):
            self.note_stalled(error)
        else:
            self.note_failure(error)
        return error

    def _check(self, response: Response) -> None:
        """Raises what a response says, unless that is content."""
        if response.status in (200, 206):
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise self._left(UpstreamFailed(f"{shown(response.url)} answered with a page instead of an object"))
            return
        if response.status == 404:
            raise NotThere(f"{shown(response.url)} is not there")
        answered = UpstreamFailed(f"{shown(response.url)} answered {response.status}")
        if response.status == 416:
            # About this object only.
            raise answered
        raise self._left(answered)

    async def look(self) -> bool:
        """Returns whether it answers as it should, and notes `why` if not."""
        if self._transport.offline:
            return True
        try:
            async with asyncio.timeout(PATIENCE):
                url = await self.objects.sign("GET", _PROBE)
                response = await self._transport.request("GET", url, {}, tls=self._tls, timeout=PATIENCE, way=self.way)
                try:
                    body = await read_bounded(response, _LARGEST_TAG, PATIENCE)
                finally:
                    response.release()
        except TimeoutError:
            self.why = f"it did not answer in {PATIENCE:g} s"
            return False
        except MirrorError as error:
            self.why = error.message
            return False
        if response.status == 200 or (response.status == 404 and any(code in body for code in _ABSENT)):
            return True
        code = body.partition(b"<Code>")[2].partition(b"</Code>")[0][:60].decode("ascii", "replace")
        said = f" ({code})" if code.isalnum() else ""
        self.why = f"{shown(response.url)} answered {response.status}{said}: does it exist, and may it be read, listed and written to with these credentials?"
        return False


class _BucketStream(PlaceStream):
    """The bytes of a blob from a bucket."""

    def __init__(self, stream: BlobStream, bucket: Bucket, capped: bool, ended: Callable[[MirrorError | None], None]) -> None:
        """`capped`: True if a cap may make it slow."""
        super().__init__(stream, True, ended)
        self._bucket = bucket
        self._capped = capped
        self._waited = 0.0
        self._came = 0

    async def _next(self, wanted: int) -> memoryview:
        began = time.monotonic()
        try:
            data = await self._stream.read(wanted)
        except UpstreamStalled as error:
            self._bucket.note_stalled(error)
            raise
        if not data:
            self._bucket.note_given()
        self._waited += time.monotonic() - began
        self._came += len(data)
        if self._waited >= PATIENCE:
            if self._came * PATIENCE < _LEAST * self._waited and data and not self._capped:
                raise self._bucket.note_slow()
            self._waited, self._came = 0.0, 0
        return data
