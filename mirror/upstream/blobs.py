"""A blob upstream: over which of the registry's endpoints its bytes come.

Blobs are verified, so they may come from any endpoint, or from several at once. Which one is asked is decided by what each has delivered lately; only where
that makes no difference by the order given.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from mirror import metrics
from mirror.errors import BlobUnknown, MirrorError, UpstreamBusy, UpstreamInvalid, UpstreamLimited
from mirror.manifests import Descriptor
from mirror.names import Digest, Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import with_failover
from mirror.upstream.health import MOST_ACTIVE
from mirror.upstream.receiver import Response
from mirror.upstream.streams import BlobStream
from mirror.upstream.transport import Transport, length_of, shown

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
_AS_GOOD = 1.5
"""Times the best endpoint's time within which the order given decides."""


class Blob:
    """One blob of one repository. It remembers which endpoints sent its bytes, to know which one sent wrong ones."""

    def __init__(
        self, registry: str, endpoints: Sequence[Endpoint], transport: Transport, repository: Repository, digest: Digest
    ) -> None:
        self._registry = registry
        self._endpoints = endpoints
        self._transport = transport
        self._repository = repository
        self._digest = digest
        self._pulled = metrics.pulled_bytes.labels(registry, "blob")
        self._givers: set[Endpoint] = set()
        self._refused: set[Endpoint] = set()
        self._alone = False

    @property
    def connections(self) -> int:
        """How many may fetch it at once: 1 where its bytes must come from one endpoint, because several gave wrong ones."""
        return 1 if self._alone else self._transport.connections.per_blob

    @property
    def ranges(self) -> bool:
        """False where all endpoints are known not to answer them rightly."""
        return not all(endpoint.delivery.unranged for endpoint in self._endpoints)

    @property
    def _empty(self) -> bool:
        return self._digest == Digest.of(b"", self._digest.algorithm)

    async def describe(self) -> Descriptor:
        """Its size. Raises BlobUnknown, Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> Descriptor:
            url = endpoint.url(self._repository, f"blobs/{self._digest}")
            response = await endpoint.head(url, self._repository, {}, deadline, self._digest)
            size = length_of(response) if response is not None else None
            if not size and not (size == 0 and self._empty):
                # Some stores do not say the length in it, or say 0. An empty blob has no first byte to ask for.
                stream = await self._open(endpoint, 0, None if self._empty else 1, deadline)
                await stream.aclose()
                size = stream.size
            if size is None:
                raise UpstreamInvalid(f"{shown(url)} does not say how long the blob is")
            return Descriptor("application/octet-stream", self._digest, size)

        return await with_failover(
            self._registry, self._ranked(0), self._transport.timeouts, ask, self._repository, mutable=False
        )

    async def open(self, start: int = 0, stop: int | None = None, *, spare: bool = False, avoid: str | None = None) -> BlobStream:
        """Begins to fetch ``[start, stop)``; all of it is asked for without a Range.

        A `spare` connection is one that the blob can do without: it is opened only within the bounds, rather not at the endpoint `avoid`.
        Raises BlobUnknown, Denied, UpstreamError; UpstreamBusy where no spare connection may be opened now.
        """
        ranked = self._ranked(start, spare=spare, avoid=avoid)
        if spare:
            ranked = [endpoint for endpoint in ranked if self._transport.allows_spare(endpoint.delivery)]
            if not ranked:
                raise UpstreamBusy(f"{self._registry}: as many connections as allowed are open")
        return await with_failover(
            self._registry,
            ranked,
            self._transport.timeouts,
            lambda endpoint, deadline: self._open(endpoint, start, stop, deadline, spare=spare),
            self._repository,
            mutable=False,
        )

    def reject(self) -> bool:
        """The bytes were wrong. True when it may be tried again: with what another endpoint has, or with one of several at a time."""
        givers, self._givers = self._givers, set()
        if len(givers) == 1:
            for giver in givers:
                giver.delivery.note_wrong()
            self._refused |= givers
        elif self._alone:
            return False
        # Of several nobody knows who it was: from now on one gives it all.
        self._alone = True
        return len(self._refused) < len(self._endpoints)

    def _ranked(self, start: int, *, spare: bool = False, avoid: str | None = None) -> list[Endpoint]:
        costs = {endpoint: endpoint.delivery.cost() for endpoint in self._endpoints}
        best = min((cost for cost in costs.values() if cost is not None), default=0.0)

        def key(endpoint: Endpoint) -> tuple[object, ...]:
            delivery = endpoint.delivery
            cost = costs[endpoint]
            # Who has not been asked lately is taken to be as good as the best, and so gets its turn.
            cost = best or 1.0 if cost is None else cost
            if spare:
                cost *= delivery.active + 1
            elif cost <= best * _AS_GOOD or not best:
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
        self, endpoint: Endpoint, start: int, stop: int | None, deadline: float, *, spare: bool = False
    ) -> BlobStream:
        url = endpoint.url(self._repository, f"blobs/{self._digest}")
        headers = {}
        if start > 0 or stop is not None:
            # Closed where possible: some registries answer 416 to an open one.
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        try:
            async with asyncio.timeout_at(deadline):
                lease = await endpoint.delivery.lease()
        except TimeoutError:
            raise UpstreamLimited(f"{endpoint.name}: {MOST_ACTIVE} downloads are under way, the most from one endpoint") from None
        asked = asyncio.get_running_loop().time()
        try:
            response = await endpoint.send(
                "GET", url, self._repository, headers, deadline, self._digest, impatient=spare and bool(self._givers)
            )
        except BaseException:
            lease.end()
            raise
        try:
            size, first = self._read_head(endpoint, response, start, stop, bool(headers))
        except MirrorError:
            response.release()
            lease.end()
            raise
        endpoint.delivery.begin(lease, asyncio.get_running_loop().time() - asked)
        self._givers.add(endpoint)
        stall = self._transport.timeouts.stall
        return BlobStream(response, size, first, stall, self._pulled, endpoint.name, lease)

    def _read_head(
        self, endpoint: Endpoint, response: Response, start: int, stop: int | None, ranged: bool
    ) -> tuple[int | None, int]:
        """Size of the whole blob and offset of the first byte that comes."""
        if response.status == 404:
            raise self._unknown()
        if response.status == 200:
            if ranged:
                endpoint.delivery.note_unranged()
            size = length_of(response)
            if size == 0 and not self._empty:
                # No byte could be withheld of it: it would look complete.
                raise UpstreamInvalid(f"{shown(response.url)} answered with nothing where there must be a blob")
            return size, 0
        if response.status == 206 and ranged:
            try:
                return _content_range(response, start, stop)
            except UpstreamInvalid:
                endpoint.delivery.note_unranged()
                raise
        raise UpstreamInvalid(f"{shown(response.url)} answered {response.status} to a request for a blob")

    def _unknown(self) -> BlobUnknown:
        return BlobUnknown(f"{self._repository.registry} has no blob {self._digest} in {self._repository.path}")


def _content_range(response: Response, start: int, stop: int | None) -> tuple[int | None, int]:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start or (stop is not None and int(match[2]) >= stop):
        raise UpstreamInvalid(f"{shown(response.url)} answered with another range than was asked for")
    return None if match[3] == "*" else int(match[3]), start
