"""One URL at which a registry can be asked."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from yarl import URL

from mirror import metrics
from mirror.errors import (
    Denied,
    MirrorError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.names import Digest, Repository
from mirror.tasks import close_all
from mirror.upstream.challenges import Challenge, choose, parse_challenges, pull_scope
from mirror.upstream.guard import Guard
from mirror.upstream.health import Breaker, Delivery, EndpointHealth
from mirror.upstream.pacing import EndpointPacer
from mirror.upstream.receiver import Response
from mirror.upstream.redirects import follow
from mirror.upstream.tokens import Authenticator, Credentials
from mirror.upstream.transport import Transport, retry_after, shown
from mirror.upstream.urls import may_get_credentials, same_origin

_SIGNED_KEPT = 60.0
"""Seconds that a blob's redirect is used again: signatures were seen to last 5 minutes and more."""
_MOST_SIGNED = 1000
_MOST_CHALLENGES = 4096
_NAMED = re.compile(r".*/v2/(.+)/(?:manifests|blobs|tags|referrers)/")
_PATIENCE = 30.0
"""Seconds that a request waits for its turn after a 429: containerd wants headers within 30 s, and the header timeout is shorter."""
_IMPATIENCE = 1.0
"""The same where there is another endpoint to ask."""
_HEAD_DISTRUSTED = 3600.0
"""Seconds for which HEAD is not tried again, once it refused what GET gave."""
_HEAD_DISTRUSTED_COUNTED = 60.0
"""The same where GETs are counted as pulls, and HEADs are not."""


@dataclass(frozen=True, slots=True)
class _Signed:
    """Where a blob was redirected to: good for its other ranges until `until`."""

    url: URL
    via: tuple[URL, ...]
    until: float


class Endpoint:
    """Requests with authentication and redirects."""

    def __init__(
        self,
        registry: str,
        url: str,
        transport: Transport,
        credentials: Credentials | None,
        tls: ssl.SSLContext | None,
        *,
        own: bool,
        alone: bool,
    ) -> None:
        """`credentials` are those that its origin may have, None for none; `own` is True for the registry itself, and `alone` where it has no other endpoint."""
        self.base = URL(url)
        self.name = shown(self.base)
        self._labels = (registry, self.base.authority)
        up = metrics.upstream_up.labels(*self._labels)
        up.set(1)
        self.breaker = Breaker(told=up.set)
        self.delivery = Delivery()
        transport.deliveries.append(self.delivery)
        self.own = own
        self.alone = alone
        self._registry = registry
        self._transport = transport
        self._authenticator = Authenticator(registry, credentials)
        self._guard = Guard(transport, self.base, tls)
        self._anonymous = Authenticator(registry, None)
        self._challenges: OrderedDict[str, Challenge] = OrderedDict()
        self._signed: OrderedDict[tuple[Repository, Digest], _Signed] = OrderedDict()
        self._pacers = {kind: EndpointPacer(self.name) for kind in ("blob", "GET", "HEAD")}
        """GETs of manifests apart from HEADs, which Docker Hub does not count as pulls; blobs apart from both."""
        self._heads_from = 0.0
        self._limits: list[int | None] = [None, None]

    async def aclose(self) -> None:
        await close_all(self._authenticator.aclose, self._anonymous.aclose)

    @property
    def health(self) -> EndpointHealth:
        delivery = self.delivery
        state, error = self.breaker.state, self.breaker.last_error
        if state == "ok" and delivery.wrong:
            state, error = "wrong", "it sent a blob that was not what its digest says, and is asked for blobs last"
        pause = self.breaker.pause_left
        again = None if pause is None else time.time() + pause
        heard = self.breaker.heard
        return EndpointHealth(self.name, state, error, delivery.latency, delivery.throughput, heard, again, *self._limits)

    def url(self, repository: Repository, rest: str) -> URL:
        """The URL of a resource of a repository."""
        return self.resolve(f"{repository.path}/{rest}")

    def resolve(self, rest: str) -> URL:
        """The URL of what is below ``/v2/``, its query included.

        An endpoint that is not the registry itself is told which one is meant (``ns``, as containerd does): it may be a mirror of several.
        """
        url = URL(f"{str(self.base).rstrip('/')}/v2/{rest}", encoded=True)
        if self.own or "ns" in url.query:
            return url
        return URL(f"{url}{'&' if url.raw_query_string else '?'}ns={self._registry}", encoded=True)

    @property
    def heads(self) -> bool:
        """False where HEAD is known to be worth nothing."""
        return time.monotonic() >= self._heads_from

    def distrust_heads(self) -> None:
        """Takes note that a HEAD was refused, or said nothing, where GET was answered."""
        counted = self._limits[0] is not None
        self._heads_from = time.monotonic() + (_HEAD_DISTRUSTED_COUNTED if counted else _HEAD_DISTRUSTED)

    async def head(
        self, url: URL, repository: Repository, headers: dict[str, str], deadline: float, blob: Digest | None = None
    ) -> Response | None:
        """Sends a HEAD; None where it is refused, breaks off, or takes more than half of the time, which proves nothing of GET.

        Registries and stores refuse HEAD for what they give to GET: Nexus by 404, URLs signed for GET by 403, others by 401, 405, 501, or not at all.
        Raises UpstreamLimited, TokenServiceFailed, and UpstreamUnreachable where there is no connection.
        """
        try:
            response = await self.send("HEAD", url, repository, headers, deadline, blob)
        except (Denied, UpstreamFailed, UpstreamInvalid, UpstreamTimeout):
            return None
        response.release()
        return response if response.status == 200 else None

    async def send(
        self,
        method: str,
        url: URL,
        repository: Repository,
        headers: dict[str, str],
        deadline: float,
        blob: Digest | None = None,
        *,
        impatient: bool = False,
    ) -> Response:
        """Sends a request, answers a challenge, follows redirects, waits for its turn after a 429. Returns a response of any status but those of failure.

        `deadline` is in the event loop's time; an `impatient` request fails where it would have to wait for its turn. The redirect of a `blob` is used again for
        its other ranges. Raises Denied, UpstreamError.
        """
        pacer = self._pacers[method if blob is None else "blob"]
        while True:
            patience = 0.0 if impatient else min(_left(deadline), _PATIENCE if self.alone else _IMPATIENCE)
            sent = await pacer.turn(repository.path, patience)
            # Where HEAD is not answered at all, there is to be time to ask by GET.
            until = deadline if method == "GET" else deadline - _left(deadline) / 2
            try:
                response = await self._send(method, url, repository, headers, until, blob)
            except MirrorError as error:
                metrics.upstream_errors.labels(*self._labels, _kind(error)).inc()
                raise
            self._note_limits(response)
            if response.status != 429:
                break
            response.release()
            metrics.upstream_errors.labels(*self._labels, "limited").inc()
            # Its turn is after those that wait already; where that is beyond its deadline, `turn` says so.
            pacer.limited(repository.path, sent, retry_after(response), self._limits[1] == 0)
        pacer.answered(repository.path)
        try:
            self._check(response, method)
        except MirrorError as error:
            metrics.upstream_errors.labels(*self._labels, _kind(error)).inc()
            response.release()
            raise
        return response

    async def _send(
        self,
        method: str,
        url: URL,
        repository: Repository,
        headers: dict[str, str],
        deadline: float,
        blob: Digest | None,
    ) -> Response:
        if blob is not None and (signed := self._signed_url(repository, blob)) is not None:
            response = await self._once(signed.via, method, signed.url, headers, deadline)
            if response.status in (200, 206):
                return response
            # It has expired, or is gone: the registry gives another.
            response.release()
            self._signed.pop((repository, blob), None)
        via: list[URL] = []

        async def send(to: URL) -> Response:
            named = _NAMED.match(to.raw_path) if via else None
            return await self._authorized(via, method, to, named[1] if named else repository.path, headers, deadline)

        response = await follow(url, via, send)
        if blob is not None and via and response.status in (200, 206):
            self._signed[repository, blob] = _Signed(response.url, tuple(via), time.monotonic() + _SIGNED_KEPT)
            if len(self._signed) > _MOST_SIGNED:
                self._signed.popitem(last=False)
        return response

    def _signed_url(self, repository: Repository, blob: Digest) -> _Signed | None:
        found = self._signed.get((repository, blob))
        return found if found is not None and time.monotonic() < found.until else None

    async def _authorized(
        self, via: Sequence[URL], method: str, url: URL, name: str, headers: dict[str, str], deadline: float
    ) -> Response:
        """Sends a request for the repository `name`, and answers challenges.

        What an origin demanded for one repository says nothing of another. Any refusal drops what was remembered, and the registry is asked once more without
        it. The endpoint's credentials and tokens go to its own host alone: a store that signs its URLs refuses both kinds at once, and another registry that a
        redirect leads to has challenges of its own, which are answered anonymously.
        """
        authenticator = self._authenticator if may_get_credentials(self.base, url) else self._anonymous
        key = f"{url.origin()} {name}"
        challenge, fresh = self._challenges.get(key), False
        while True:
            sent, reused, scope = dict(headers), False, ""
            if challenge is not None:
                scope = pull_scope(challenge.scope, name)
                # A token service that hangs leaves time to ask the registry without a token.
                seconds = _left(deadline) if fresh else _left(deadline) / 2
                try:
                    value, reused = await authenticator.header(challenge, scope, self._guard, [*via, url], seconds)
                except MirrorError:
                    self._challenges.pop(key, None)
                    if fresh:
                        raise
                    challenge = None
                    continue
                sent["Authorization"] = value
            response = await self._once(via, method, url, sent, deadline)
            # An old token may be answered 400, too.
            if response.status not in (401, 403) and not (response.status == 400 and reused):
                if challenge is not None:
                    self._remember(key, challenge)
                return response
            if challenge is not None:
                self._challenges.pop(key, None)
                await authenticator.forget(challenge, scope)
            if response.status != 401:
                if challenge is None or (fresh and not reused):
                    return response
                response.release()
                challenge = challenge if fresh else None
                continue
            offered = choose(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
            response.release()
            if offered is None:
                raise Denied(f"{shown(url)} answered 401 without a challenge that this mirror knows")
            if challenge is not None and ((fresh and not reused) or challenge.scheme == offered.scheme == "basic"):
                raise Denied(f"{self._registry} does not let these credentials pull {name}, or has no such repository")
            challenge, fresh = offered, True

    def _remember(self, key: str, challenge: Challenge) -> None:
        self._challenges[key] = challenge
        self._challenges.move_to_end(key)
        if len(self._challenges) > _MOST_CHALLENGES:
            self._challenges.popitem(last=False)

    async def _once(self, via: Sequence[URL], method: str, url: URL, headers: dict[str, str], deadline: float) -> Response:
        try:
            with metrics.upstream_seconds.labels(*self._labels, method).time():
                return await self._guard.request(method, via, url, headers, _left(deadline))
        except UpstreamUnreachable as error:
            if same_origin(url, self.base):
                raise
            # Where a redirect leads is not this endpoint: nothing says that it cannot be reached for the next request.
            raise UpstreamFailed(error.message) from None

    def _check(self, response: Response, method: str) -> None:
        """Raises what a status stands for. Not for HEAD: its refusal proves nothing, since registries and stores refuse it for what they give to GET."""
        where, status = shown(response.url), response.status
        if method == "HEAD":
            return
        if status in (401, 403, 451):
            raise Denied(f"{where} answered {status}: pulling this needs credentials that are not set, or is not allowed")
        if status >= 500 or status == 408:
            raise UpstreamFailed(f"{where} answered {status}")

    def _note_limits(self, response: Response) -> None:
        gauges = (("ratelimit-limit", metrics.ratelimit_limit), ("ratelimit-remaining", metrics.ratelimit_remaining))
        for place, (name, gauge) in enumerate(gauges):
            value = response.headers.get(name, "").partition(";")[0].strip()
            if value.isascii() and value.isdigit():
                self._limits[place] = int(value[:12])
                gauge.labels(*self._labels).set(int(value[:12]))


def _left(deadline: float) -> float:
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise UpstreamTimeout("upstream did not answer in time")
    return left


def _kind(error: MirrorError) -> str:
    match error:
        case UpstreamLimited():
            return "limited"
        case UpstreamTimeout():
            return "timeout"
        case UpstreamUnreachable():
            return "unreachable"
        case Denied():
            return "denied"
    return "invalid"
