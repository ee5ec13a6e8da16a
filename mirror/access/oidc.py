"""Identity tokens of OpenID Connect issuers, as CI systems and Kubernetes give them to their jobs: OpenID Connect Core 1.0, section 2, and Discovery 1.0.

A token is good if its issuer signed it for the audience in the settings, if it is not over, and if it has the claims that the settings want. Which keys an issuer has
is asked for when they are needed, and again where a token names another one, at most every half minute.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mirror.errors import LoginWrong, TooManyGuesses
from mirror.tasks import SingleFlight

log = logging.getLogger(__name__)

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key that only the issuer has."""
_TIMEOUT = 5.0
_LARGEST = 1024 * 1024
_KEYS_LAST = 3600.0
_ASK_AGAIN = 30.0
_LEEWAY = 30.0
"""Seconds by which clocks may differ."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """One ``[[oidc]]`` table. `name` is what rules call those who have a token of it."""

    name: str
    url: str
    audience: str
    claims: Mapping[str, str]
    """Patterns of `fnmatch`, by claim."""
    ca_file: str | None = None
    client_id: str | None = None
    """What the issuer calls the mirror where people log in by it in a browser; None where they do not."""
    client_secret_file: str | None = None
    user_claim: str | None = None
    groups_claim: str | None = None
    scope: str = "openid profile email"

    def names_all(self, claims: Mapping[str, Any]) -> bool:
        """True if a token has all claims that something is decided by."""
        wanted = (*self.claims, self.user_claim, self.groups_claim)
        return all(name in claims for name in wanted if name is not None)

    def wants(self, claims: Mapping[str, Any]) -> bool:
        """True if a token has all claims that are wanted."""
        return all(fnmatchcase(_text(claims.get(name)), pattern) for name, pattern in self.claims.items())


@dataclass(frozen=True, slots=True)
class Verified:
    """Whose a token is: the names of the tables that it fits, its subject, and its end in seconds since the epoch."""

    names: frozenset[str]
    subject: str
    until: float


class Issuers:
    """Verifies tokens."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._issuers: tuple[Issuer, ...] = ()
        self._keys: dict[str, tuple[dict[str, Any], float]] = {}
        """By issuer: the keys by their ID, and when they were asked for."""
        self._failed: dict[str, float] = {}
        """By issuer, when it could last not be asked."""
        self._asking: SingleFlight[dict[str, Any]] = SingleFlight()

    async def aclose(self) -> None:
        await self._asking.aclose()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(issuer.name for issuer in self._issuers)

    @property
    def all(self) -> tuple[Issuer, ...]:
        return self._issuers

    async def claims_of(self, issuer: Issuer, given: str, audience: str) -> dict[str, Any]:
        """Returns what a token of an issuer says. Raises LoginWrong, TooManyGuesses."""
        import jwt

        try:
            key = await self._key(issuer, str(jwt.get_unverified_header(given).get("kid", "")))
            found: dict[str, Any] = jwt.decode(
                given,
                key,
                algorithms=list(_ALGORITHMS),
                audience=audience,
                issuer=issuer.url,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise LoginWrong(f"the identity token is refused: {error}") from None
        return found

    def take(self, issuers: tuple[Issuer, ...]) -> None:
        self._issuers = issuers
        self._keys.clear()

    def concerns(self, given: str) -> bool:
        """True if a token says that one of the issuers has made it. That is not verified."""
        return bool(self._issuers) and any(_said_issuer(given) == issuer.url for issuer in self._issuers)

    async def verify(self, given: str) -> Verified:
        """Raises LoginWrong, and TooManyGuesses where an issuer cannot be asked for its keys now."""
        import jwt

        said = _said_issuer(given)
        fitting = [issuer for issuer in self._issuers if issuer.url == said]
        if not fitting:
            raise LoginWrong("no [[oidc]] table is about who has made this token")
        names, claims, reason = set(), dict[str, Any](), ""
        key = await self._key(fitting[0], str(jwt.get_unverified_header(given).get("kid", "")))
        for issuer in fitting:
            try:
                claims = jwt.decode(
                    given,
                    key,
                    algorithms=list(_ALGORITHMS),
                    audience=issuer.audience,
                    issuer=issuer.url,
                    leeway=_LEEWAY,
                    options={"require": ["exp", "iss", "aud"]},
                )
            except jwt.PyJWTError as error:
                reason = f"it is refused: {error}"
                continue
            if issuer.wants(claims):
                names.add(issuer.name)
            else:
                reason = "it does not have the claims that the settings want"
        if not names:
            raise LoginWrong(f"this token of {said} is not good here: {reason}")
        return Verified(frozenset(names), _text(claims.get("sub"))[:200], float(claims["exp"]))

    async def _key(self, issuer: Issuer, kid: str) -> Any:
        """Raises LoginWrong, TooManyGuesses."""
        keys, asked = self._keys.get(issuer.url, ({}, float("-inf")))
        age = self._clock() - asked
        failed = self._clock() - self._failed.get(issuer.url, float("-inf"))
        if age >= _ASK_AGAIN if kid not in keys else age >= _KEYS_LAST and failed >= _ASK_AGAIN:
            try:
                keys, _ = await self._asking.do(issuer.url, lambda: asyncio.to_thread(_fetch_keys, issuer))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("the keys of %s cannot be had: %s", issuer.url, error, extra={"cause": str(error)})
                self._failed[issuer.url] = self._clock()
                if kid not in keys:
                    raise TooManyGuesses(f"the keys of {issuer.url} cannot be had now", _TIMEOUT) from None
            else:
                self._keys[issuer.url] = keys, self._clock()
        if kid not in keys:
            raise LoginWrong(f"this token names a key that {issuer.url} does not have")
        return keys[kid]


def _fetch_keys(issuer: Issuer) -> dict[str, Any]:
    """Blocks. Raises OSError, ValueError, KeyError, TypeError, AttributeError."""
    import jwt

    found = {}
    for one in fetch_json(issuer, discover(issuer, "jwks_uri"))["keys"]:
        try:
            found[str(one.get("kid", ""))] = jwt.PyJWK(one)
        except jwt.PyJWTError:
            # Of a kind that is not known here.
            continue
    return found


def discover(issuer: Issuer, name: str) -> str:
    """Returns a URL of an issuer's configuration. Blocks. Raises OSError, ValueError, KeyError, TypeError."""
    where = fetch_json(issuer, f"{issuer.url.rstrip('/')}/.well-known/openid-configuration")[name]
    if not isinstance(where, str) or not where.startswith(("https://", issuer.url.partition("://")[0] + "://")):
        raise ValueError(f"its {name} is not https")
    return where


def fetch_json(issuer: Issuer, url: str, headers: Mapping[str, str] | None = None, form: bytes | None = None) -> dict[str, Any]:
    """Asks an issuer for a JSON object, or sends it a form. Blocks. Raises OSError, ValueError."""
    context = ssl.create_default_context(cafile=issuer.ca_file)
    request = urllib.request.Request(url, form, dict(headers or {}))  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context if url.startswith("https") else None) as answer:  # noqa: S310
            document: dict[str, Any] = json.loads(answer.read(_LARGEST))
            return document
    except urllib.error.HTTPError as error:
        # It has the connection.
        error.close()
        raise


def _said_issuer(given: str) -> str:
    """Who a token says has made it, not verified; empty where it says nothing that can be one."""
    import jwt

    try:
        said = jwt.decode(given, options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, RecursionError):
        return ""
    return said if isinstance(said, str) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
