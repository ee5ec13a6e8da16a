"""An endpoint of a registry: requests with authentication, redirects and pacing."""

from __future__ import annotations

import asyncio
import logging
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
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.names import Digest, Repository
from mirror.tasks import close_all
from mirror.upstream.challenges import Challenge, choose, parse_challenges, pull_scope
from mirror.upstream.guard import Guard
from mirror.upstream.health import Breaker, Delivery, EndpointHealth, Standing
from mirror.upstream.logins import check_login
from mirror.upstream.pacing import EndpointPacer
from mirror.upstream.proxies import Way
from mirror.upstream.receiver import Response
from mirror.upstream.redirects import follow
from mirror.upstream.refusals import kind_of, refusal
from mirror.upstream.tokens import Authenticator, Credentials
from mirror.upstream.transport import Transport, read_bounded, retry_after, shown, source
from mirror.upstream.urls import may_get_credentials, same_origin

log = logging.getLogger(__name__)

_SIGNED_KEPT = 60.0
"""Seconds for which the redirect of a blob is reused. Signed URLs are valid for at least 5 minutes at known registries."""
_MOST_SIGNED = 1000
_MOST_CHALLENGES = 4096
_MOST_PACERS = 1000
_NAMED = re.compile(r".*/v2/(.+)/(?:manifests|blobs|tags|referrers)/")
_LONGEST_REFUSAL = 64 * 1024
_REFUSAL_TIME = 1.0
"""Seconds for reading why something was refused."""
_PATIENCE = 30.0
"""Seconds for which a request waits after a 429: containerd waits 30 s for headers, and the header timeout is shorter."""
_IMPATIENCE = 1.0
"""The same if the registry has another endpoint."""
_HEAD_DISTRUSTED = 3600.0
"""Seconds for which HEAD is not used after it failed where GET succeeded."""
_HEAD_DISTRUSTED_COUNTED = 60.0
"""The same if upstream counts GETs as pulls, but not HEADs."""


@dataclass(frozen=True, slots=True)
class _Signed:
    """The target of a blob's redirect, which is reused for other ranges until `until` (monotonic time)."""

    url: URL
    via: tuple[URL, ...]
    until: float


class Endpoint:
    """One base URL of a registry."""

    def __init__(
        self,
        registry: str,
        url: str,
        transport: Transport,
        credentials: Credentials | None,
        tls: ssl.SSLContext | None,
        *,
        own: bool,
        only: bool,
        path: str = "",
        proxy: str | None = None,
        way: Way | None = None,
        clients: bool = False,
    ) -> None:
        """`credentials` are those that its origin may get, None for none, or with `clients` each client's own; `own` is True for the registry's own host, `only` if the registry has no other endpoint.

        `path` is put before each repository's name. `proxy` is the endpoint's own setting, which tells it from others with its URL. `way` is the way out,
        None for the transport's."""
        self.base = URL(url)
        self.path = path
        self.name = shown(self.base / "v2" / path if path else self.base) + _named(proxy)
        self._labels = (registry, endpoint_label(self.base, path, proxy))
        up = metrics.upstream_up.labels(*self._labels)
        up.set(1)
        self.breaker = Breaker(on_outcome=up.set)
        self.standing = Standing()
        self.delivery = Delivery()
        transport.deliveries.append(self.delivery)
        self.own = own
        self.only = only
        self._registry = registry
        self._transport = transport
        self.check_online = transport.check_online
        self._authenticator = Authenticator(registry, credentials, clients=clients)
        self.renew_tokens = self._authenticator.renew
        self._guard = Guard(transport, self.base, tls, way)
        self._anonymous = Authenticator(registry, None)
        self._challenges: OrderedDict[str, Challenge] = OrderedDict()
        self._signed: OrderedDict[tuple[Repository, Digest], _Signed] = OrderedDict()
        self._pacers: OrderedDict[tuple[str, bytes], EndpointPacer] = OrderedDict()
        """By kind of request, and by client where each has an account of its own: one that is used up stops nobody else."""
        self._heads_from = 0.0
        self._limits: list[int | None] = [None, None]

    async def aclose(self) -> None:
        await close_all(self._authenticator.aclose, self._anonymous.aclose)

    @property
    def place(self) -> tuple[URL, str]:
        """What is the same for several ways to one place: it says the same by each."""
        return self.base, self.path

    def is_asked_last(self, repository: str) -> bool:
        """Returns whether others are asked first: it failed recently, is slower, or refused this repository."""
        return self.breaker.state != "ok" or self.standing.is_last(repository)

    @property
    def health(self) -> EndpointHealth:
        delivery = self.delivery
        state, error = self.breaker.state, self.breaker.last_error
        if state == "ok" and delivery.wrong:
            state, error = "wrong", "it sent a blob that was not what its digest says, and is asked for blobs last"
        pause = self.breaker.pause_left
        again = None if pause is None else time.time() + pause
        heard = self.breaker.heard
        pulls, left = self._limits
        token = self._authenticator.latency
        return EndpointHealth(self.name, state, error, delivery.latency, delivery.throughput, heard, again, pulls, left, token)

    def url(self, repository: Repository, rest: str) -> URL:
        """Returns the URL of a resource of a repository."""
        return self.resolve(f"{self._name_of(repository)}/{rest}")

    def _name_of(self, repository: Repository) -> str:
        """Returns the repository's name at this endpoint."""
        return f"{self.path}/{repository.path}" if self.path else repository.path

    def resolve(self, rest: str) -> URL:
        """Returns the URL of a path and query below ``/v2/``.

        For another host than the registry's own it adds the registry's name as ``ns``, as containerd does: that host may mirror several registries. Not with a
        `path`, which says what is mirrored.
        """
        url = URL(f"{str(self.base).rstrip('/')}/v2/{rest}", encoded=True)
        if self.own or self.path or "ns" in url.query:
            return url
        return URL(f"{url}{'&' if url.raw_query_string else '?'}ns={self._registry}", encoded=True)

    @property
    def heads(self) -> bool:
        """False while HEAD is known to be unreliable."""
        return time.monotonic() >= self._heads_from

    def distrust_heads(self) -> None:
        """Call this when HEAD failed, or had no useful headers, and GET succeeded."""
        counted = self._limits[0] is not None
        self._heads_from = time.monotonic() + (_HEAD_DISTRUSTED_COUNTED if counted else _HEAD_DISTRUSTED)

    async def check_login(self, deadline: float) -> None:
        """See `mirror.upstream.logins.check_login`."""
        await check_login(self._registry, self.base, self._guard, _left(deadline))

    async def head(
        self, url: URL, repository: Repository, headers: dict[str, str], deadline: float, blob: Digest | None = None
    ) -> Response | None:
        """Sends a HEAD. Returns None if it fails, or takes more than half of the time: GET may succeed all the same.

        Some registries and stores answer GET but refuse HEAD: Nexus with 404, URLs signed for GET with 403, others with 401, 405 or 501, or not at all.
        Raises UpstreamLimited, TokenServiceFailed; UpstreamUnreachable if there is no connection.
        """
        try:
            response = await self.send("HEAD", url, repository, headers, deadline, blob)
        except (Denied, UpstreamFailed, UpstreamInvalid, UpstreamTimeout):
            return None
        response.release()
        return response if response.status == 200 and not (is_page(response) and not self.only) else None

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
        is_list: bool = False,
    ) -> Response:
        """Sends a request, answers challenges, follows redirects, and waits and repeats it after a 429, or a 503 whose Retry-After is short.

        Returns a response whose status is no failure. `deadline` is in the event loop's time; an `impatient` request fails instead of waiting. The redirect of a
        `blob` is reused for its other ranges. `is_list` is True for the lists of tags and referrers. Raises Denied, UpstreamError.
        """
        # Separate ones for GET and HEAD of manifests, since Docker Hub does not count HEADs as pulls; for blobs; and for lists.
        pacer = self._pacer("blob" if blob is not None else "list" if is_list else method)
        while True:
            patience = 0.0 if impatient else min(_left(deadline), _PATIENCE if self.only else _IMPATIENCE)
            sent = await pacer.turn(repository.path, patience)
            # If HEAD gets no answer, there is still time for GET.
            until = deadline if method == "GET" else deadline - _left(deadline) / 2
            try:
                response = await self._send(method, url, repository, headers, until, blob)
            except MirrorError as error:
                metrics.upstream_errors.labels(*self._labels, kind_of(error)).inc()
                raise
            self._note_limits(response)
            wait = retry_after(response)
            # A registry that restarts, or a proxy that limits requests, answers 503 and says when to come again (RFC 9110, section 10.2.3).
            if response.status != 429 and not (response.status == 503 and wait is not None and wait <= patience):
                break
            response.release()
            metrics.upstream_errors.labels(*self._labels, "limited").inc()
            # It is repeated after the requests that wait already; `turn` raises if that is beyond its deadline.
            pacer.limited(repository.path, sent, wait, self._limits[1] == 0, response.status)
        pacer.answered(repository.path)
        try:
            await self._check(response, method, deadline)
        except MirrorError as error:
            metrics.upstream_errors.labels(*self._labels, kind_of(error)).inc()
            response.release()
            raise
        return response

    def _pacer(self, kind: str) -> EndpointPacer:
        key = kind, self._authenticator.client_key
        if (found := self._pacers.get(key)) is None:
            found = self._pacers[key] = EndpointPacer(self.name)
        self._pacers.move_to_end(key)
        if len(self._pacers) > _MOST_PACERS:
            self._pacers.popitem(last=False)
        return found

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
            try:
                # If the store hangs, there is still time to ask the registry.
                response = await self._once(signed.via, method, signed.url, headers, deadline - _left(deadline) / 2)
                if response.status in (200, 206):
                    return response
                response.release()
            except MirrorError as error:
                log.info("the redirect of %s in %s is asked for again: %s", blob, repository, error.message)
            # The URL has expired, or its host fails: the registry may redirect to another.
            self._signed.pop((repository, blob), None)
        via: list[URL] = []

        async def send(to: URL) -> Response:
            named = _NAMED.match(to.raw_path) if via else None
            return await self._authorized(via, method, to, named[1] if named else self._name_of(repository), headers, deadline)

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

        Challenges are remembered for each origin and repository. After any refusal the remembered one is dropped, and the request is sent once more without it. The
        endpoint's credentials and tokens go only to its own host: a store with signed URLs refuses a request that has an Authorization header too, and the
        challenges of another registry, to which a redirect leads, are answered anonymously.
        """
        authenticator = self._authenticator if may_get_credentials(self.base, url) else self._anonymous
        key = f"{url.origin()} {name}"
        challenge, fresh = self._challenges.get(key), False
        while True:
            sent, reused, scope = dict(headers), False, ""
            if challenge is not None:
                scope = pull_scope(challenge.scope, name)
                # If the token service hangs, there is still time for a request without a token.
                seconds = _left(deadline) if fresh else _left(deadline) / 2
                try:
                    value, reused = await authenticator.header(challenge, scope, self._guard, [*via, url], seconds)
                except MirrorError as error:
                    self._challenges.pop(key, None)
                    # A client's wrong password is sent once: some registries lock an account after a few.
                    if fresh or (isinstance(error, Denied) and authenticator.client_key):
                        raise
                    challenge = None
                    continue
                sent["Authorization"] = value
            response = await self._once(via, method, url, sent, deadline)
            # Some registries answer 400 to an expired token, stores with signed URLs to any Authorization.
            if response.status not in (400, 401, 403):
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
                return await self._guard.request(method, via, url, headers, _left(deadline), self._registry)
        except UpstreamUnreachable as error:
            if same_origin(url, self.base):
                raise
            # The target of a redirect cannot be reached, which is no evidence about this endpoint.
            raise UpstreamFailed(error.message) from None

    async def _check(self, response: Response, method: str, deadline: float) -> None:
        """Raises Denied or UpstreamFailed for a status of failure, and UpstreamInvalid for a web page if there are other endpoints; never for HEAD, whose failure
        proves nothing (see `head`)."""
        where, status = source(response), response.status
        if method == "HEAD":
            return
        if status in (401, 403, 451):
            raise refusal(where, response, await _excerpt(response, deadline))
        if status == 200 and is_page(response) and not self.only:
            raise UpstreamInvalid(f"{where} answered with a web page, as log-in pages and captive portals do")
        if status >= 500 or status == 408:
            raise UpstreamFailed(f"{where} answered {status}")

    def _note_limits(self, response: Response) -> None:
        gauges = (("ratelimit-limit", metrics.ratelimit_limit), ("ratelimit-remaining", metrics.ratelimit_remaining))
        for place, (name, gauge) in enumerate(gauges):
            value = response.headers.get(name, "").partition(";")[0].strip()
            if value.isascii() and value.isdigit():
                self._limits[place] = int(value[:12])
                gauge.labels(*self._labels).set(int(value[:12]))


def is_page(response: Response) -> bool:
    """Returns whether a response is a web page, by its Content-Type."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


async def _excerpt(response: Response, deadline: float) -> bytes:
    """Returns the body of a refusal; empty if it cannot be read in time."""
    try:
        return await read_bounded(response, _LONGEST_REFUSAL, min(_left(deadline), _REFUSAL_TIME))
    except MirrorError:
        return b""


def endpoint_label(base: URL, path: str, proxy: str | None = None) -> str:
    """Returns the value of the label `endpoint` in metrics. `proxy` is the endpoint's own setting."""
    return (f"{base.authority}/{path}" if path else base.authority) + _named(proxy)


def _named(proxy: str | None) -> str:
    return f" (proxy {proxy})" if proxy else ""


def _left(deadline: float) -> float:
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise UpstreamTimeout("upstream did not answer in time")
    return left
