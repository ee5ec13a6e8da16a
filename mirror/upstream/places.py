"""Other mirrors that are asked before a registry: those of the same fleet, and parents.

What they say is believed where it is an answer: content, that the registry does not have it (404), or that it limits requests (429 there, which mirrors pass on as 503 with Retry-After).
Any other error leads to the next place. One that gives no answer is waited for as long as it lives (see watch.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import ssl
import sys
import time
from collections.abc import Callable
from urllib.parse import quote

from yarl import URL

from mirror import metrics
from mirror.cdn_loop import CHILD, HEADER, PEER, Looped, passed
from mirror.errors import (
    BlobUnknown,
    ManifestUnknown,
    MirrorError,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.manifests import ACCEPT, ACCEPT_ANY, MAX_SIZE, Descriptor, Manifest
from mirror.names import Digest, Reference, Repository
from mirror.upstream.blobs import Head, begin_delivery, content_range, range_headers
from mirror.upstream.documents import age_of, described, verified
from mirror.upstream.health import Delivery, Lease
from mirror.upstream.proxies import Way
from mirror.upstream.rates import Limiter, Share
from mirror.upstream.receiver import Response
from mirror.upstream.streams import BlobStream
from mirror.upstream.transport import Transport, length_of, read_bounded, retry_after, shown
from mirror.upstream.watch import Watch

log = logging.getLogger(__name__)

_MARGIN = 2.0
"""Seconds for which a place is waited for beyond the time that it waits for its own upstream."""
_PATIENCE, _LOOK = {True: 0.25, False: 0.5}, {True: 1.0, False: 2.0}
"""Seconds for which somebody waits before a mirror is looked at, and in which one that lives answers a look, however busy it is: one of the fleet (True), which is near, and a parent,
which may be far. Together they are what a pull loses when one has stopped."""
_ABSENT = ("detail=MANIFEST_UNKNOWN", "detail=BLOB_UNKNOWN")
_LIMITED = "detail=TOOMANYREQUESTS"
_LOOP_TOLD = 600.0
"""Seconds for which a loop is told after it was last seen."""


def authorization(token: str | None) -> dict[str, str]:
    """Returns the header that shows a token; none where there is no token."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def looped(name: str) -> str:
    """What is said of a mirror that requests go around in a circle with."""
    return f"the mirror {name} asks this one, or one before it, for what it is asked for itself: take one of them out of fleet.parents"


class NotThere(UpstreamError):
    """A place has not got it, which says nothing of the registry."""


class Place:
    """One other mirror."""

    def __init__(
        self,
        url: str,
        own: str,
        transport: Transport,
        token: Callable[[], str | None],
        *,
        is_peer: bool,
        tls: ssl.SSLContext | None,
        way: Way | None,
        limiter: Limiter,
    ) -> None:
        """`own` is what this mirror is called. `token` returns what this one proves itself with there, None for nothing; it may raise OSError, ValueError. `is_peer` is False for a
        parent. `way` is the way out to it, None for the transport's; `limiter` has the caps that hold for what it sends."""
        self.name = url
        self.is_peer = is_peer
        self.delivery = Delivery()
        transport.deliveries.append(self.delivery)
        self._label = URL(url).authority
        self._own = own
        self._transport = transport
        self._token = token
        self._tls = tls
        self._way = way
        self._limiter = limiter
        up = metrics.peer_up.labels(self._label)
        up.set(1)
        self.watch = Watch(f"the mirror {url}", self._look, up.set, patience=_PATIENCE[is_peer], seconds=_LOOK[is_peer])
        self._looped = -math.inf
        """When it last said that a request had passed it before, by the monotonic clock."""
        self._received = {kind: metrics.peer_received_bytes.labels(self._label, kind) for kind in ("blob", "manifest")}
        self._errors = metrics.peer_errors.labels(self._label)

    async def aclose(self) -> None:
        await self.watch.aclose()

    @property
    def alive(self) -> bool:
        return self.watch.alive

    @property
    def loops(self) -> bool:
        """True if requests to it go around in a circle, as it has said within some minutes."""
        return time.monotonic() - self._looped < _LOOP_TOLD

    def note_wrong(self, digest: Digest) -> None:
        """Call this when its bytes, or what came with them, were wrong."""
        log.warning(
            "%s is not asked for %s again: its bytes, or what came with them, are not what the digest says", self.name, digest
        )

    # ------------------------------------------------------------------ documents

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor:
        """Returns what a reference points to. Raises ManifestUnknown, UpstreamError."""
        rest = f"manifests/{reference}"
        response = await self._send("HEAD", repository, rest, {"Accept": ACCEPT})
        response.release()
        self._check(response, repository, _no_manifest(repository, reference))
        found = described(response, reference, self.name)
        if found is None:
            raise UpstreamInvalid(f"{shown(response.url)} does not describe a manifest")
        return Descriptor(found.media_type, found.digest, found.size, self.name, age_of(response))

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """Returns a verified manifest. Raises ManifestUnknown, UpstreamError."""
        accept = ACCEPT_ANY if isinstance(reference, Digest) else ACCEPT
        response = await self._send("GET", repository, f"manifests/{reference}", {"Accept": accept})
        try:
            self._check(response, repository, _no_manifest(repository, reference))
            async with self.watch.waiting():
                body = await read_bounded(response, MAX_SIZE, self._transport.timeouts.header)
        finally:
            response.release()
        self._received["manifest"].inc(len(body))
        found = verified(response, body, reference, self.name, repository.registry)
        return Manifest(found.media_type, found.digest, found.body, self.name, age_of(response))

    async def head_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """Returns the size of a blob. Raises BlobUnknown, UpstreamError."""
        response = await self._send("HEAD", repository, f"blobs/{digest}", {})
        response.release()
        self._check(response, repository, _no_blob(repository, digest))
        if (size := length_of(response)) is None:
            raise UpstreamInvalid(f"{shown(response.url)} does not say the size of the blob")
        return Descriptor("application/octet-stream", digest, size)

    async def has_all(self, repository: Repository, digest: Digest) -> bool:
        """Returns whether it has all of a blob, as far as it says."""
        try:
            response = await self._send("HEAD", repository, f"blobs/{digest}", {})
        except UpstreamError:
            return False
        response.release()
        return response.status == 200 and "hit" in _cache_status(response)

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
        """Requests the bytes ``[start, stop)``. `ended` is called once when the stream is closed, with the error that ended it. Raises BlobUnknown, UpstreamError."""
        headers = range_headers(start, stop)

        def read_head(response: Response) -> Head:
            self._check(response, repository, _no_blob(repository, digest))
            return _read_head(response, start, stop, digest)

        lease = await self.delivery.lease()
        (size, first), response = await begin_delivery(
            self.delivery, lease, lambda: self._send("GET", repository, f"blobs/{digest}", headers), read_head
        )
        return self._stream(response, size, first, lease, share, ended)

    def _stream(
        self,
        response: Response,
        size: int | None,
        first: int,
        lease: Lease,
        share: Share,
        ended: Callable[[MirrorError | None], None],
    ) -> PlaceStream:
        waits = self._transport.timeouts
        # It may wait for its upstream, and for a second one after that, before it has more.
        stall = 2 * waits.stall + waits.header
        stream = BlobStream(response, size, first, stall, self._received["blob"], self.name, lease, self._limiter, share)
        return _MirrorStream(stream, self.watch, "hit" in _cache_status(response), ended)

    # ------------------------------------------------------------------ requests

    async def _send(self, method: str, repository: Repository, rest: str, headers: dict[str, str]) -> Response:
        url = URL(f"{self.name}/v2/{repository.path}/{rest}?ns={quote(repository.registry, safe='')}", encoded=True)
        seconds = self._transport.timeouts.header + _MARGIN
        sent = {**headers, HEADER: passed().extended(self._own, PEER if self.is_peer else CHILD)}
        # Without it, the other one decides whether it answers.
        with contextlib.suppress(OSError, ValueError):
            sent |= authorization(self._token())
        try:
            async with self.watch.waiting():
                return await self._transport.request(method, url, sent, tls=self._tls, timeout=seconds, way=self._way)
        except (UpstreamUnreachable, UpstreamTimeout, UpstreamInvalid) as error:
            self._errors.inc()
            if isinstance(error, UpstreamUnreachable) and not isinstance(error, UpstreamFailed):
                self.watch.note_dead()
            raise

    def _check(self, response: Response, repository: Repository, absent: MirrorError) -> None:
        """Raises what a response says, unless that is content: `absent` where the registry does not have it."""
        status, said = response.status, _cache_status(response)
        if status in (200, 206) and said:
            return
        # Its own refusals have fwd=bypass, and say nothing of the registry.
        if status == 404 and "fwd=miss" in said and not said.isdisjoint(_ABSENT):
            raise absent
        if {"fwd=miss", _LIMITED} <= said and (wait := retry_after(response)) is not None:
            raise UpstreamLimited(f"{repository.registry} limits requests, as {self.name} says", wait)
        self._errors.inc()
        if status == Looped.status:
            if not self.loops:
                log.warning("%s", looped(self.name))
            self._looped = time.monotonic()
        if status in (200, 206):
            raise UpstreamInvalid(f"{shown(response.url)} answered, but is no mirror: it has sent no Cache-Status of one")
        raise UpstreamFailed(f"{shown(response.url)} answered {status}")

    async def _look(self) -> bool:
        """Returns whether it answers, whatever that is. Offline nobody is asked, and nothing is said of it."""
        if self._transport.offline:
            return True
        try:
            response = await self._transport.request("GET", URL(f"{self.name}/healthz"), {}, tls=self._tls, way=self._way)
        except MirrorError:
            return False
        response.release()
        return True


class PlaceStream:
    """The bytes of a blob from a place; see `mirror.downloads.download.Stream`."""

    def __init__(self, stream: BlobStream, is_hit: bool, ended: Callable[[MirrorError | None], None]) -> None:
        self.size, self.start, self.endpoint = stream.size, stream.start, stream.endpoint
        self.is_hit = is_hit
        """True if the place has all of the blob already."""
        self._stream = stream
        self._ended: Callable[[MirrorError | None], None] | None = ended
        self._error: MirrorError | None = None

    async def read(self, wanted: int = sys.maxsize) -> memoryview:
        """Returns the next bytes, as `BlobStream.read`. Raises UpstreamError."""
        try:
            return await self._next(wanted)
        except MirrorError as error:
            self._error = error
            raise

    async def _next(self, wanted: int) -> memoryview:
        return await self._stream.read(wanted)

    async def aclose(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self._error)
        await self._stream.aclose()


class _MirrorStream(PlaceStream):
    """The bytes of a blob from another mirror."""

    def __init__(self, stream: BlobStream, watch: Watch, is_hit: bool, ended: Callable[[MirrorError | None], None]) -> None:
        super().__init__(stream, is_hit, ended)
        self._watch = watch

    async def _next(self, wanted: int) -> memoryview:
        async with self._watch.waiting():
            return await self._stream.read(wanted)


def _cache_status(response: Response) -> frozenset[str]:
    """Returns the parameters of a mirror's own member of Cache-Status (RFC 9211, section 2), the last one; none if no mirror has sent it."""
    name, *parameters = response.headers.get("Cache-Status", "").rpartition(",")[2].split(";")
    return frozenset(parameter.strip() for parameter in parameters) if name.strip() == "mirror" else frozenset()


def _no_manifest(repository: Repository, reference: Reference) -> ManifestUnknown:
    return ManifestUnknown(f"{repository.registry} has no manifest {reference} in {repository.path}")


def _no_blob(repository: Repository, digest: Digest) -> BlobUnknown:
    return BlobUnknown(f"{repository.registry} has no blob {digest} in {repository.path}")


def _read_head(response: Response, start: int, stop: int | None, digest: Digest) -> tuple[int | None, int]:
    """Returns the size of the whole blob, and the offset of the first byte in the body. Raises UpstreamInvalid."""
    if response.status == 200:
        size = length_of(response)
        if size == 0 and digest != Digest.of(b"", digest.algorithm):
            raise UpstreamInvalid(f"{shown(response.url)} answered with an empty body instead of a blob")
        return size, 0
    return content_range(response, start, stop)
