"""Answers to challenges: Bearer tokens, fetched once a scope and kept until shortly before they expire, and Basic.

Distribution's "Token Authentication Specification"; Docker Hub's realm is on another host, which is checked before anything is sent there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from aiocache import SimpleMemoryCache
from yarl import URL

from mirror.errors import Denied, TargetRefused, UpstreamInvalid, UpstreamLimited, UpstreamUnreachable
from mirror.tasks import SingleFlight
from mirror.upstream.challenges import Challenge
from mirror.upstream.guard import Guard
from mirror.upstream.transport import read_bounded, retry_after, shown

Credentials = Callable[[], tuple[str, str] | None]
"""User and password, asked for at each use, so that a changed password file counts at once. May raise OSError."""

_DEFAULT_LIFE = 60.0
_SHORTEST_LIFE = 1.0
_LARGEST_TOKEN = 256 * 1024


class Authenticator:
    """Makes Authorization headers for one registry. The credentials go to nobody else."""

    def __init__(self, registry: str, credentials: Credentials) -> None:
        self._registry = registry
        self._credentials = credentials
        self._tokens = SimpleMemoryCache(timeout=None)
        self._fetching: SingleFlight[str] = SingleFlight()

    async def aclose(self) -> None:
        await self._fetching.aclose()
        await self._tokens.clear()

    async def header(self, challenge: Challenge, scope: str, guard: Guard, timeout: float) -> str:
        """The value for Authorization. Raises Denied where there are no credentials, or wrong ones, and UpstreamError."""
        if challenge.scheme == "basic":
            return _basic(self._known("asks for user and password"))
        scope = scope if challenge.scope is None else challenge.scope
        key = f"{challenge.realm} {challenge.service} {scope}"
        token = await self._tokens.get(key)
        if token is None:
            token, _ = await self._fetching.do(key, lambda: self._fetch(key, challenge, scope, guard, timeout))
        return f"Bearer {token}"

    async def forget(self, challenge: Challenge, scope: str) -> None:
        """Drops a token that was refused."""
        scope = scope if challenge.scope is None else challenge.scope
        await self._tokens.delete(f"{challenge.realm} {challenge.service} {scope}")

    def _known(self, wish: str) -> tuple[str, str]:
        found = self._read()
        if found is None:
            raise Denied(f'{self._registry} {wish}: set username and password_file under [registries."{self._registry}"]')
        return found

    def _read(self) -> tuple[str, str] | None:
        try:
            return self._credentials()
        except (OSError, ValueError):
            raise Denied(f"the password file for {self._registry} cannot be read") from None

    async def _fetch(self, key: str, challenge: Challenge, scope: str, guard: Guard, timeout: float) -> str:
        try:
            realm = URL(challenge.realm)
        except ValueError:
            raise TargetRefused(f"{self._registry}'s token realm is not a URL") from None
        url = realm.update_query({name: value for name, value in (("service", challenge.service), ("scope", scope)) if value})
        credentials = self._read()
        headers = {"Authorization": _basic(credentials)} if credentials is not None else {}
        where = shown(url)
        response = await guard.request("GET", url, headers, timeout)
        try:
            if response.status in (400, 401, 403):
                advice = (
                    "check the username and password set for it" if credentials else "this needs credentials, and none are set"
                )
                raise Denied(f"{self._registry}'s token service ({where}) answered {response.status}: {advice}")
            if response.status == 429:
                raise UpstreamLimited(f"{where} answered 429: too many requests", retry_after(response))
            if response.status >= 500:
                raise UpstreamUnreachable(f"{where} answered {response.status}")
            if response.status != 200:
                raise UpstreamInvalid(f"{where} answered {response.status} instead of a token")
            body = await read_bounded(response, _LARGEST_TOKEN, timeout)
        finally:
            response.release()
        token, life = _parse(body, where)
        # "Shortly before": a token must not expire between here and the registry.
        life -= min(10.0, life / 4)
        if life >= _SHORTEST_LIFE:
            await self._tokens.set(key, token, ttl=life)
        return token


def _parse(body: bytes, where: str) -> tuple[str, float]:
    try:
        document: Any = json.loads(body)
        token = document.get("token") or document.get("access_token")
        life = float(document.get("expires_in") or _DEFAULT_LIFE)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UpstreamInvalid(f"{where} sent something that is not a token") from None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise UpstreamInvalid(f"{where} sent no usable token")
    return token, min(life, 86400.0)


def _basic(credentials: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(credentials).encode()).decode()
