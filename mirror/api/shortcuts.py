"""Fast path for manifests in memory: a request with the same bytes as an earlier one is answered without being parsed.

Clients of one kind send the same bytes each time, and equal requests mean the same. Whether the tag is still fresh and the manifest unchanged is checked each
time. This saves two thirds of a hit's time, most of which aiohttp spends on parsing requests and building responses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from aiohttp import web
from aiohttp.http import SERVER_SOFTWARE

from mirror import metrics
from mirror.api.access import AccessLog
from mirror.api.responses import cache_status
from mirror.cache.cache import Cache
from mirror.cache.outcome import HIT
from mirror.manifests import Manifest
from mirror.names import Reference, Repository

_LONGEST_REQUEST = 4 * 1024
_LARGEST_BODY = 16 * 1024
_MOST = 1024
_HIT = cache_status(HIT)
_NOT_PLAIN = (b"\ncontent-length", b"\ntransfer-encoding", b"\nconnection", b"\nupgrade", b"\nexpect")
"""Header fields of requests that have a body or change the state of the connection."""


def is_plain(data: bytes) -> bool:
    """True if these bytes are exactly one GET or HEAD request of HTTP/1.1, without a body, that leaves the connection open."""
    if not data.endswith(b"\r\n\r\n") or not data.startswith((b"GET ", b"HEAD ")) or data.count(b"\r\n\r\n") != 1:
        return False
    lines = data.lower()
    return lines.partition(b"\r\n")[0].endswith(b" http/1.1") and not any(header in lines for header in _NOT_PLAIN)


@dataclass(frozen=True, slots=True)
class Permit:
    """What an equal request of the same client needs to be answered. `until` is in seconds since the epoch."""

    until: float
    allow: Callable[[], bool]
    """Counts the request, and returns whether it is within the client's limits."""
    note: Callable[[int], None]
    """Records that so many bytes were sent."""


class _Answer:
    __slots__ = (
        "_body",
        "_cache",
        "_client",
        "_counters",
        "_epoch",
        "_head",
        "_manifest",
        "_note",
        "_permit",
        "_reference",
        "_repository",
    )

    def __init__(
        self,
        cache: Cache,
        repository: Repository,
        reference: Reference,
        manifest: Manifest,
        head: bytes,
        agent: str,
        client: str,
        permit: Permit | None,
    ) -> None:
        self._cache = cache
        self._repository = repository
        self._reference = reference
        self._manifest = manifest
        self._head = head
        self._body = b"\r\n\r\n" + manifest.body
        self._epoch = -1
        """The guard's epoch in which it last passed."""
        self._note = str(repository), str(reference), agent
        self._client = client
        self._permit = permit
        kind = (repository.registry, "manifest")
        self._counters = (
            metrics.requests.labels(*kind),
            metrics.hits.labels(*kind),
            metrics.pushed_bytes.labels(*kind),
            metrics.request_seconds.labels("manifest", "hit"),
        )

    def bytes(self, date: bytes) -> bytes | None:
        """The response; None if the tag is no longer fresh, the manifest has changed, or who asks has to be found out again."""
        manifests = self._cache.manifests
        if (guard := manifests.guard) is None or guard.epoch == self._epoch:
            found = manifests.hot_unchecked(self._repository, self._reference)
        else:
            epoch = guard.epoch
            found = manifests.hot(self._repository, self._reference)
            self._epoch = epoch
        if found is not self._manifest:
            return None
        permit = self._permit
        if permit is not None and (permit.until <= time.time() or not permit.allow()):
            return None
        return b"".join((self._head, date, self._body))

    def count(self, access: AccessLog | None, client: str, seconds: float) -> None:
        """Counts and logs a request that was answered."""
        size = len(self._manifest.body)
        requests, hits, pushed, times = self._counters
        requests.inc()
        hits.inc()
        pushed.inc(size)
        times.observe(seconds)
        if self._permit is not None:
            self._permit.note(size)
        if access is not None:
            repository, reference, agent = self._note
            access.note(self._client or client, "GET", repository, reference, "", 200, size, seconds, _HIT, agent, True)


class Shortcuts:
    """Remembers answers by the bytes of their requests. When it is full, it forgets all."""

    def __init__(self, cache: Cache, access: AccessLog | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cache = cache
        self._access = access
        self._clock = clock
        self._answers: dict[tuple[bytes, bool, str], _Answer] = {}
        self.per_client = False
        """True if the answer depends on the address of the client too, and not only on what it has sent."""
        self._second = 0
        self._date = b""

    def forget(self) -> None:
        """Forgets all answers."""
        self._answers.clear()

    def remember(
        self,
        data: bytes,
        loopback: bool,
        client: str,
        response: web.StreamResponse,
        repository: Repository,
        reference: Reference,
        agent: str,
        shown_client: str = "",
        permit: Permit | None = None,
    ) -> None:
        """Keeps `response`, to a plain request `data` for a manifest, if memory alone made it. On `local_hosts` other hosts are known than on the network.

        `client` is the address of the connection, and `shown_client` what is logged, if that is another one.
        """
        manifest = self._cache.manifests.hot(repository, reference)
        if manifest is None or response.status != 200 or response.headers["Cache-Status"] != _HIT or not data.startswith(b"GET "):
            return
        if len(data) > _LONGEST_REQUEST or len(manifest.body) > _LARGEST_BODY:
            return
        if len(self._answers) >= _MOST:
            self._answers.clear()
        lines = [f"{name}: {value}" for name, value in response.headers.items()]
        lines += [f"Content-Length: {len(manifest.body)}", f"Server: {SERVER_SOFTWARE}", "Date: "]
        head = "\r\n".join(["HTTP/1.1 200 OK", *lines]).encode()
        self._answers[data, loopback, client if self.per_client else ""] = _Answer(
            self._cache, repository, reference, manifest, head, agent, shown_client, permit
        )

    def answer(self, data: bytes, loopback: bool, client: str) -> bytes | None:
        """The bytes of the response to a request; None if the request has to be parsed."""
        key = data, loopback, client if self.per_client else ""
        found = self._answers.get(key)
        if found is None:
            return None
        began = self._clock()
        response = found.bytes(self._now())
        if response is None:
            del self._answers[key]
            return None
        found.count(self._access, client, self._clock() - began)
        return response

    def _now(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
        return self._date
