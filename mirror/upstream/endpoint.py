"""One URL at which a registry can be asked."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import aiohttp
from yarl import URL

from mirror import metrics
from mirror.errors import Denied, MirrorError, UpstreamInvalid, UpstreamLimited, UpstreamTimeout, UpstreamUnreachable
from mirror.names import Digest, Repository
from mirror.upstream.challenges import Challenge, choose, parse_challenges
from mirror.upstream.guard import Guard, same_origin
from mirror.upstream.health import Breaker, Delivery, EndpointHealth
from mirror.upstream.receiver import Response
from mirror.upstream.tokens import Authenticator
from mirror.upstream.transport import Answer, Transport, retry_after, shown

_A = TypeVar("_A", bound=Answer)
_Ask = Callable[[URL, dict[str, str], float], Awaitable[_A]]
"""Sends one request: URL, headers, and the seconds that are left."""

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_SIGNED_KEPT = 60.0
"""Seconds that a blob's redirect is used again: signatures were seen to last 5 minutes and more."""
_MOST_SIGNED = 1000
_LIMITED_FOR = 30.0
"""Seconds that pulls are not asked for after a 429 that does not say how long; what is cached is served meanwhile."""
_LONGEST_LIMITED = 300.0


class Endpoint:
    """Requests with authentication and redirects."""

    def __init__(
        self, registry: str, url: str, transport: Transport, authenticator: Authenticator, tls: ssl.SSLContext | None
    ) -> None:
        self.base = URL(url)
        self.name = shown(self.base)
        self._labels = (registry, self.base.authority)
        up = metrics.upstream_up.labels(*self._labels)
        up.set(1)
        self.breaker = Breaker(told=up.set)
        self.delivery = Delivery()
        transport.deliveries.append(self.delivery)
        self._registry = registry
        self._transport = transport
        self._authenticator = authenticator
        self._guard = Guard(transport, self.base, tls)
        self._challenge: Challenge | None = None
        self._signed: OrderedDict[Digest, tuple[URL, float]] = OrderedDict()
        self._limited_until = 0.0
        self._limits: list[int | None] = [None, None]

    @property
    def health(self) -> EndpointHealth:
        delivery = self.delivery
        state, error = self.breaker.state, self.breaker.last_error
        if state == "ok" and delivery.wrong:
            state, error = "wrong", "it sent a blob that was not what its digest says, and is asked for blobs last"
        return EndpointHealth(self.name, state, error, delivery.latency, delivery.throughput, self.breaker.heard, *self._limits)

    def url(self, repository: Repository, rest: str) -> URL:
        """The URL of a resource of a repository."""
        return URL(f"{str(self.base).rstrip('/')}/v2/{repository.path}/{rest}", encoded=True)

    async def send(
        self, method: str, url: URL, repository: Repository, headers: dict[str, str], deadline: float, blob: Digest | None = None
    ) -> aiohttp.ClientResponse:
        """Sends a request, answers a challenge, follows redirects. Returns a response of any status but those of failure.

        `deadline` is in the event loop's time. The redirect of a `blob` is used again for its other ranges. Raises Denied, UpstreamError.
        """
        return await self._ask(partial(self._guard.request, method), method, url, repository, headers, deadline, blob)

    async def receive(self, url: URL, repository: Repository, headers: dict[str, str], deadline: float, blob: Digest) -> Response:
        """Sends a GET for a blob, whose body is received in a thread; otherwise as `send`."""
        return await self._ask(self._guard.receive, "GET", url, repository, headers, deadline, blob)

    async def _ask(
        self,
        ask: _Ask[_A],
        method: str,
        url: URL,
        repository: Repository,
        headers: dict[str, str],
        deadline: float,
        blob: Digest | None,
    ) -> _A:
        counts = method == "GET" and blob is None
        if counts and time.monotonic() < self._limited_until:
            left = self._limited_until - time.monotonic()
            raise UpstreamLimited(f"{shown(self.base)} has answered 429 and is left alone for another {left:.0f} s", left)
        try:
            response = await self._send(ask, method, url, repository, headers, deadline, blob)
        except MirrorError as error:
            metrics.upstream_errors.labels(*self._labels, _kind(error)).inc()
            raise
        self._note_limits(response)
        try:
            self._check(response, counts)
        except MirrorError as error:
            metrics.upstream_errors.labels(*self._labels, _kind(error)).inc()
            response.release()
            raise
        return response

    async def _send(
        self,
        ask: _Ask[_A],
        method: str,
        url: URL,
        repository: Repository,
        headers: dict[str, str],
        deadline: float,
        blob: Digest | None,
    ) -> _A:
        if blob is not None and (signed := self._signed_url(blob)) is not None:
            response = await self._once(ask, method, signed, headers, deadline)
            if response.status in (200, 206):
                return response
            # It has expired, or is gone: the registry gives another.
            response.release()
            self._signed.pop(blob, None)
        response = await self._authorized(ask, method, url, repository, headers, deadline)
        seen = {url}
        while response.status in _REDIRECTS:
            location = response.headers.get("Location")
            response.release()
            if location is None:
                raise UpstreamInvalid(f"{shown(url)} redirects nowhere")
            try:
                target = url.join(URL(location, encoded=True))
            except ValueError:
                raise UpstreamInvalid(f"{shown(url)} redirects to something that is no URL") from None
            if target in seen or len(seen) > _MOST_REDIRECTS:
                raise UpstreamInvalid(f"{shown(url)} redirects in a circle, or too often")
            seen.add(target)
            url = target
            if same_origin(url, self.base):
                response = await self._authorized(ask, method, url, repository, headers, deadline)
            else:
                # Without Authorization: another host must never see it, and a store that signs its URLs refuses both.
                response = await self._once(ask, method, url, headers, deadline)
        if blob is not None and len(seen) > 1 and response.status in (200, 206):
            self._signed[blob] = url, time.monotonic() + _SIGNED_KEPT
            if len(self._signed) > _MOST_SIGNED:
                self._signed.popitem(last=False)
        return response

    def _signed_url(self, blob: Digest) -> URL | None:
        url, until = self._signed.get(blob, (None, 0.0))
        return url if time.monotonic() < until else None

    async def _authorized(
        self, ask: _Ask[_A], method: str, url: URL, repository: Repository, headers: dict[str, str], deadline: float
    ) -> _A:
        scope = f"repository:{repository.path}:pull"
        challenge = self._challenge
        for again in (True, False):
            sent = dict(headers)
            if challenge is not None:
                sent["Authorization"] = await self._authenticator.header(challenge, scope, self._guard, _left(deadline))
            response = await self._once(ask, method, url, sent, deadline)
            if response.status != 401:
                return response
            answered = challenge
            challenge = choose(parse_challenges(response.headers.getall("WWW-Authenticate", [])))
            response.release()
            if answered is not None:
                await self._authenticator.forget(answered, scope)
            if challenge is None:
                raise Denied(f"{shown(self.base)} answered 401 without a challenge that this mirror knows")
            # A challenge for our own scope is one for any repository; another one stands for itself (public.ecr.aws: "aws").
            own = challenge.scope in (None, scope)
            self._challenge = Challenge(challenge.scheme, challenge.realm, challenge.service, None if own else challenge.scope)
            if not again:
                break
            if answered is not None and challenge.scheme == "basic":
                break
        raise Denied(
            f"{self._registry} does not let {'these credentials' if challenge else 'anyone'} pull {repository.path}, or has no such repository"
        )

    async def _once(self, ask: _Ask[_A], method: str, url: URL, headers: dict[str, str], deadline: float) -> _A:
        with metrics.upstream_seconds.labels(*self._labels, method).time():
            return await ask(url, headers, _left(deadline))

    def _check(self, response: Answer, counts: bool) -> None:
        where, status = shown(response.url), response.status
        if status == 429:
            wait = retry_after(response)
            if counts:
                self._limited_until = time.monotonic() + min(_LIMITED_FOR if wait is None else wait, _LONGEST_LIMITED)
            raise UpstreamLimited(f"{where} answered 429: too many requests", wait)
        if status in (401, 403, 451):
            raise Denied(f"{where} answered {status}: pulling this needs credentials that are not set, or is not allowed")
        if status >= 500 or status == 408:
            raise UpstreamUnreachable(f"{where} answered {status}")

    def _note_limits(self, response: Answer) -> None:
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
