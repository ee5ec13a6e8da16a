"""Fetches a blob from the endpoints of a registry.

Blobs are verified, so they may come from any endpoint, or from several at once. Endpoints are ranked by what they delivered recently; those that are about as
fast keep the configured order.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence

from mirror import metrics
from mirror.client_login import acting_for, on_behalf_of
from mirror.errors import BlobUnknown, MirrorError, UpstreamBusy, UpstreamInvalid, UpstreamLimited
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import Unfinished, with_failover
from mirror.upstream.health import AS_GOOD, MOST_ACTIVE, Delivery, Lease
from mirror.upstream.rates import Share
from mirror.upstream.receiver import Response
from mirror.upstream.streams import BlobStream
from mirror.upstream.transport import Transport, length_of, shown

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)

Head = tuple[int | None, int]
"""The size of a whole blob, None if that is not stated, and the offset of the first byte of a body."""


class Blob:
    """A blob of a repository. It records which endpoints sent its bytes, so that one that sent wrong bytes is known."""

    def __init__(
        self,
        registry: str,
        endpoints: Sequence[Endpoint],
        transport: Transport,
        repository: Repository,
        digest: Digest,
        unfinished: Unfinished,
    ) -> None:
        self._registry = registry
        self._endpoints = endpoints
        self._transport = transport
        self._repository = repository
        self._digest = digest
        self.unfinished = unfinished
        self._pulled = metrics.pulled_bytes.labels(registry, "blob")
        self._givers: set[Endpoint] = set()
        self._refused: set[Endpoint] = set()
        self._single_source = False
        self.share = Share(registry)
        self._login = acting_for()
        """Whose request it is for: another client's may have begun the download that opens it."""

    @property
    def connections(self) -> int:
        """How many connections may fetch it at once: 1 after wrong bytes from several endpoints, since all bytes must then come from one."""
        return 1 if self._single_source else self._transport.connections.per_blob

    @property
    def ranges(self) -> bool:
        """False if no endpoint handles Range correctly, as far as is known."""
        return not all(endpoint.delivery.unranged for endpoint in self._endpoints)

    @property
    def single(self) -> bool:
        """False: each connection to a registry brings bytes of its own."""
        return False

    @property
    def least(self) -> int:
        """1: more are tried, and kept where they pay."""
        return 1

    @property
    def throttled(self) -> bool:
        """True if it is slow because of the cap on the rate."""
        return self.share.throttled(asyncio.get_running_loop().time())

    @property
    def capped(self) -> bool:
        """True if a cap on the rate holds for its registry."""
        return self._transport.limiter.capped(self._registry)

    def attend(self, wanted: bool) -> None:
        """Call this with False if no client waits for the blob: those that clients wait for get their bytes first."""
        self.share.wanted = wanted

    @property
    def _empty(self) -> bool:
        return self._digest == Digest.of(b"", self._digest.algorithm)

    async def describe(self) -> Descriptor:
        """Returns its size. Raises BlobUnknown, Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> Descriptor:
            url = endpoint.url(self._repository, f"blobs/{self._digest}")
            response = await endpoint.head(url, self._repository, {}, deadline, self._digest)
            size = length_of(response) if response is not None else None
            if not size and not (size == 0 and self._empty):
                # Some stores answer HEAD without a length, or with 0. An empty blob has no first byte to request.
                stream = await self._open(endpoint, 0, None if self._empty else 1, deadline)
                await stream.aclose()
                size = stream.size
            if size is None:
                raise UpstreamInvalid(f"{shown(url)} does not say the size of the blob")
            return Descriptor("application/octet-stream", self._digest, size)

        with on_behalf_of(self._login):
            return await with_failover(
                self._registry,
                self._ranked(0),
                self._transport.timeouts,
                ask,
                self._repository,
                unfinished=self.unfinished,
                documents=False,
            )

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> BlobStream:
        """Requests the bytes ``[start, stop)``, without Range for the whole blob.

        A `spare` connection is an additional one: it counts against the limits, and the endpoint `avoid` is its last choice. Raises BlobUnknown, Denied,
        UpstreamError; UpstreamBusy if no spare connection is allowed now.
        """
        ranked = self._ranked(start, spare=spare, avoid=avoid)
        if spare:
            ranked = [endpoint for endpoint in ranked if self._transport.allows_spare(endpoint.delivery)]
            if not ranked:
                raise UpstreamBusy(f"{self._registry}: as many connections as allowed are open")
        impatient = spare and bool(self._givers)

        async def ask(endpoint: Endpoint, deadline: float) -> tuple[Endpoint, BlobStream]:
            return endpoint, await self._open(endpoint, start, stop, deadline, impatient=impatient)

        async def discard(answer: tuple[Endpoint, BlobStream]) -> None:
            await answer[1].aclose()

        with on_behalf_of(self._login):
            giver, stream = await with_failover(
                self._registry,
                ranked,
                self._transport.timeouts,
                ask,
                self._repository,
                unfinished=self.unfinished,
                documents=False,
                patient=not impatient,
                discard=discard,
            )
        self._givers.add(giver)
        return stream

    def reject(self) -> bool:
        """Call this when the bytes were wrong. Returns whether another attempt is worthwhile: from another endpoint, or from one endpoint instead of several."""
        givers, self._givers = self._givers, set()
        if len(givers) == 1:
            for giver in givers:
                giver.delivery.note_wrong()
            self._refused |= givers
        elif self._single_source:
            return False
        # Of several endpoints, the one that sent wrong bytes is unknown: from now on one sends all of them.
        self._single_source = True
        return len(self._refused) < len(self._endpoints)

    def _ranked(self, start: int, *, spare: bool = False, avoid: str | None = None) -> list[Endpoint]:
        costs = {endpoint: endpoint.delivery.cost() for endpoint in self._endpoints}
        best = min((cost for cost in costs.values() if cost is not None), default=0.0)

        def key(endpoint: Endpoint) -> tuple[object, ...]:
            delivery = endpoint.delivery
            cost = costs[endpoint]
            # An endpoint without recent measurements counts as the fastest, so that it is measured again.
            cost = best or 1.0 if cost is None else cost
            if spare:
                cost *= delivery.active + 1
            elif cost <= best * AS_GOOD or not best:
                cost = 0.0
            return (
                endpoint in self._refused,
                delivery.full,
                delivery.wrong,
                endpoint.name == avoid,
                start > 0 and delivery.unranged,
                cost,
            )

        return sorted(self._endpoints, key=key)

    async def _open(
        self, endpoint: Endpoint, start: int, stop: int | None, deadline: float, *, impatient: bool = False
    ) -> BlobStream:
        url = endpoint.url(self._repository, f"blobs/{self._digest}")
        headers = range_headers(start, stop)
        try:
            async with asyncio.timeout_at(deadline):
                lease = await endpoint.delivery.lease()
        except TimeoutError:
            raise UpstreamLimited(f"{endpoint.name}: {MOST_ACTIVE} downloads are under way, the most from one endpoint") from None
        (size, first), response = await begin_delivery(
            endpoint.delivery,
            lease,
            lambda: endpoint.send("GET", url, self._repository, headers, deadline, self._digest, impatient=impatient),
            lambda response: self._read_head(endpoint, response, start, stop, bool(headers)),
        )
        stall = self._transport.timeouts.stall
        return BlobStream(response, size, first, stall, self._pulled, endpoint.name, lease, self._transport.limiter, self.share)

    def _read_head(self, endpoint: Endpoint, response: Response, start: int, stop: int | None, ranged: bool) -> Head:
        """Raises BlobUnknown, UpstreamInvalid."""
        if response.status == 404:
            raise self._unknown()
        if response.status == 200:
            if ranged:
                endpoint.delivery.note_unranged()
            size = length_of(response)
            if size == 0 and not self._empty:
                # An empty body would be taken for a complete one.
                raise UpstreamInvalid(f"{shown(response.url)} answered with an empty body instead of a blob")
            return size, 0
        if response.status == 206 and ranged:
            try:
                return content_range(response, start, stop)
            except UpstreamInvalid:
                endpoint.delivery.note_unranged()
                raise
        raise UpstreamInvalid(f"{shown(response.url)} answered {response.status} to a request for a blob")

    def _unknown(self) -> BlobUnknown:
        return BlobUnknown(f"{self._repository.registry} has no blob {self._digest} in {self._repository.path}")


def range_headers(start: int, stop: int | None) -> dict[str, str]:
    """Returns what asks for the bytes ``[start, stop)`` of a blob: nothing for the whole of it."""
    if start == 0 and stop is None:
        return {}
    # With an end if possible: some registries answer 416 to an open range.
    return {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}


def content_range(response: Response, start: int, stop: int | None) -> Head:
    """Returns what a 206 is about. Raises UpstreamInvalid if that is not what was asked for."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start or (stop is not None and int(match[2]) >= stop):
        raise UpstreamInvalid(f"{shown(response.url)} answered with another range than was asked for")
    return None if match[3] == "*" else int(match[3]), start


async def begin_delivery(
    delivery: Delivery, lease: Lease, ask: Callable[[], Awaitable[Response]], read_head: Callable[[Response], Head]
) -> tuple[Head, Response]:
    """Returns the answer of `ask`, whose bytes are measured from now on. What `ask` and `read_head` raise ends the lease, and releases the answer."""
    asked = asyncio.get_running_loop().time()
    try:
        response = await ask()
        try:
            head = read_head(response)
        except MirrorError:
            response.release()
            raise
    except BaseException:
        lease.end()
        raise
    delivery.begin(lease, asyncio.get_running_loop().time() - asked)
    return head, response
