"""Answers challenges: with Bearer tokens, which are cached by scope until shortly before they expire, or with Basic.

See distribution's "Token Authentication Specification". A realm may be on another host, as Docker Hub's is; the host is checked before a request is sent to it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from aiocache import SimpleMemoryCache
from yarl import URL

from mirror.client_login import ClientLogin, acting_for
from mirror.errors import (
    Denied,
    RegionBlocked,
    TargetRefused,
    TokenServiceFailed,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.local_hosts import is_loopback
from mirror.tasks import SingleFlight
from mirror.upstream.challenges import Challenge
from mirror.upstream.guard import Guard
from mirror.upstream.pacing import EndpointPacer
from mirror.upstream.receiver import Response
from mirror.upstream.redirects import follow
from mirror.upstream.refusals import refusal
from mirror.upstream.transport import read_bounded, retry_after, shown
from mirror.upstream.urls import may_get_credentials, parse_url

Credentials = Callable[[], tuple[str, str] | None]
"""Returns user and password, None for none. Called for each use, so that a changed password file takes effect at once. May raise OSError, ValueError."""

_DEFAULT_LIFE = 60.0
_SHORTEST_LIFE = 1.0
_LONGEST_LIFE = 86400.0
_LONGEST_CLIENTS_LIFE = 300.0
"""Seconds for which a token that was got with a client's password is kept."""
_LARGEST_TOKEN = 256 * 1024
_MOST_CLIENTS = 10_000
_ROUND = count(1)
_MOST_REALMS = 100
_LONGEST_PAUSE = 2.0
"""Seconds at most that a token service's Retry-After counts for: without tokens, no request to the registry succeeds."""


class Authenticator:
    """Makes Authorization headers for one origin. Its credentials are sent to that origin and its realm only, and its tokens to that origin."""

    def __init__(self, registry: str, credentials: Credentials | None, *, clients: bool = False) -> None:
        """`credentials` is None for an origin that gets none, and anonymous tokens only. With `clients`, each client's own are used instead."""
        self._clients = clients
        self._rounds: OrderedDict[bytes, int] = OrderedDict()
        """Of each client, which of its tokens are used: those that it got since the last check."""
        self._registry = registry
        self._credentials = credentials
        self._tokens = SimpleMemoryCache(timeout=None)
        self._fetching: SingleFlight[str] = SingleFlight()
        self._pacers: dict[URL, EndpointPacer] = {}
        """By the origin of the realm."""
        self.latency: float | None = None
        """Seconds that the last token took; None if there was none."""

    async def aclose(self) -> None:
        await self._fetching.aclose()
        await self._tokens.clear()

    async def header(
        self, challenge: Challenge, scope: str, guard: Guard, via: Sequence[URL], timeout: float
    ) -> tuple[str, bool]:
        """Returns the value of Authorization, and whether it is a cached token.

        `via` is the chain of URLs that led to the challenge; `timeout` is in seconds. Raises Denied if credentials are missing or wrong; UpstreamError.
        """
        if challenge.scheme == "basic":
            return _basic(self._known(via[-1])), False
        key = self._key(challenge, scope)
        token = await self._tokens.get(key)
        if token is not None:
            return f"Bearer {token}", True
        try:
            # The limit holds also if this joins a request that is under way.
            async with asyncio.timeout(timeout):
                token, _ = await self._fetching.do(
                    key, lambda: asyncio.wait_for(self._fetch(key, challenge, scope, guard, via, timeout), timeout)
                )
        except TimeoutError:
            raise TokenServiceFailed(f"{self._registry}'s token service did not answer in time") from None
        return f"Bearer {token}", False

    def renew(self) -> None:
        """Has new tokens fetched for the client whom the task works for, so that its password is checked."""
        if (login := self._client()) is not None:
            self._rounds[login.key] = next(_ROUND)
            self._rounds.move_to_end(login.key)
            if len(self._rounds) > _MOST_CLIENTS:
                self._rounds.popitem(last=False)

    async def forget(self, challenge: Challenge, scope: str) -> None:
        """Drops a cached token that was refused."""
        await self._tokens.delete(self._key(challenge, scope))

    def _known(self, url: URL) -> tuple[str, str]:
        found = self._read()
        if found is None:
            raise Denied(f"{shown(url)} requires user and password: {self._advice()}")
        return found

    def _client(self) -> ClientLogin | None:
        """The client's, whose request this works for, if it is for this registry."""
        login = acting_for() if self._clients else None
        return login if login is not None and login.registry == self._registry else None

    @property
    def client_key(self) -> bytes:
        """Whose requests the registry counts together: those of the client that it knows by its own password, or of all others."""
        return b"" if (login := self._client()) is None else login.key

    def _key(self, challenge: Challenge, scope: str) -> str:
        key = f"{challenge.realm} {challenge.service} {scope}"
        login = self._client()
        # Each client has tokens of its own.
        return key if login is None else f"{key} {login.key.hex()} {self._rounds.get(login.key)}"

    def _advice(self) -> str:
        if self._clients:
            return f"log in with a user and a password of {self._registry}"
        if self._credentials is None:
            return f"those of {self._registry} are sent only to its own endpoint, or to the first in the list if its own is not in it"
        return f'set username and password_file under [registries."{self._registry}"]'

    def _read(self) -> tuple[str, str] | None:
        if self._clients:
            login = self._client()
            return None if login is None else (login.user, login.password)
        try:
            return self._credentials() if self._credentials is not None else None
        except (OSError, ValueError):
            raise Denied(f"the password file for {self._registry} cannot be read") from None

    async def _fetch(self, key: str, challenge: Challenge, scope: str, guard: Guard, via: Sequence[URL], timeout: float) -> str:
        realm = parse_url(challenge.realm, f"the challenge of {self._registry}")
        # One parameter for each scope ("Token Authentication Specification").
        parameters = [("service", challenge.service)] if challenge.service else []
        url = realm.update_query([*parameters, *(("scope", one) for one in scope.split())])
        credentials = self._read()
        if credentials is not None and self._clients and realm.scheme != "https" and not is_loopback(realm.host):
            raise TargetRefused(f"{self._registry}'s token service ({shown(realm)}) is not https: it gets no client's password")
        headers = {"Authorization": _basic(credentials)} if credentials is not None else {}
        where, began = shown(url), asyncio.get_running_loop().time()
        response = await self._paced(scope, guard, via, url, headers, timeout)
        try:
            if response.status in (400, 401, 403):
                if credentials is None:
                    advice = f"it requires user and password: {self._advice()}"
                elif self._clients:
                    advice = "the user or the password is wrong there"
                else:
                    advice = "check the username and password set for it"
                reason = refusal(f"{self._registry}'s token service ({where})", response, await _body(response, timeout))
                if isinstance(reason, RegionBlocked):
                    raise reason
                raise Denied(f"{self._registry}'s token service ({where}) answered {response.status}: {advice}")
            if response.status != 200:
                raise UpstreamInvalid(f"{where} answered {response.status} instead of a token")
            body = await read_bounded(response, _LARGEST_TOKEN, timeout)
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            raise TokenServiceFailed(f"{self._registry}'s token service: {error.message}") from None
        finally:
            response.release()
        token, life = _parse(body, where)
        self.latency = asyncio.get_running_loop().time() - began
        # "Shortly before": a token must not expire between here and the registry.
        life -= min(10.0, life / 4)
        if self._clients:
            life = min(life, _LONGEST_CLIENTS_LIFE)
        if life >= _SHORTEST_LIFE:
            await self._tokens.set(key, token, ttl=life)
        return token

    async def _paced(
        self, scope: str, guard: Guard, via: Sequence[URL], url: URL, headers: dict[str, str], timeout: float
    ) -> Response:
        """Requests a token, and again after a 429, within `timeout` seconds. Raises UpstreamLimited if that is too short, and what `_ask` raises."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if len(self._pacers) > _MOST_REALMS:
            self._pacers.clear()
        name = f"{self._registry}'s token service ({shown(url.origin())})"
        pacer = self._pacers.setdefault(url.origin(), EndpointPacer(name, longest_pause=_LONGEST_PAUSE))
        while True:
            sent = await pacer.turn(scope, deadline - loop.time())
            response = await self._ask(guard, via, url, headers, max(deadline - loop.time(), 0.0))
            if response.status != 429:
                pacer.answered(scope)
                return response
            wait = retry_after(response)
            response.release()
            pacer.limited(scope, sent, wait, False)

    async def _ask(self, guard: Guard, via: Sequence[URL], url: URL, headers: dict[str, str], seconds: float) -> Response:
        """Requests a token from a realm and follows its redirects, with credentials for its host only. Raises TokenServiceFailed, TargetRefused, UpstreamInvalid."""
        way = list(via)

        async def send(to: URL) -> Response:
            return await guard.request("GET", way, to, headers if may_get_credentials(url, to) else {}, seconds)

        try:
            response = await follow(url, way, send)
        except (UpstreamUnreachable, UpstreamTimeout) as error:
            raise TokenServiceFailed(f"{self._registry}'s token service cannot be reached: {error.message}") from None
        if response.status >= 500:
            response.release()
            raise TokenServiceFailed(f"{self._registry}'s token service ({shown(url)}) answered {response.status}")
        return response


async def _body(response: Response, seconds: float) -> bytes:
    try:
        return await read_bounded(response, _LARGEST_TOKEN, min(seconds, 1.0))
    except UpstreamError:
        return b""


def _parse(body: bytes, where: str) -> tuple[str, float]:
    try:
        document: Any = json.loads(body)
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        raise UpstreamInvalid(f"{where} sent something that is not a token") from None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise UpstreamInvalid(f"{where} sent no usable token")
    try:
        life = float(document.get("expires_in") or _DEFAULT_LIFE)
    except (ValueError, TypeError, OverflowError):
        life = _DEFAULT_LIFE
    return token, _DEFAULT_LIFE if math.isnan(life) else min(life, _LONGEST_LIFE)


def _basic(credentials: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(credentials).encode()).decode()
