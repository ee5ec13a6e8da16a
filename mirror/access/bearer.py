"""Bearer tokens that the mirror signs and checks itself, as JSON Web Tokens (RFC 7519): the registry's token flow.

A token says who has logged in and what was asked for, never what is allowed: that is decided at each request. It is bound to the password, or the token, by which
it was got, and is worth nothing once that is changed or removed.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from mirror.access.rules import Identity
from mirror.client_login import ClientLogin
from mirror.names import Repository

SERVICE = "mirror"
"""What the challenge calls the service, and the tokens their audience."""
_LIFE = 300
"""Seconds. Clients ask again when a token is over."""
_MOST_GRANTS = 50
_NONCE = 12
"""Bytes, as NIST SP 800-38D, section 8.2.2, has them."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token was asked for: a repository as the client named it, with or without its registry, and actions."""

    name: str
    actions: frozenset[str]

    def covers(self, repository: Repository, action: str) -> bool:
        """True for a name that may mean the repository. Which registry a client means is not in the name where it sends ``ns``."""
        full = str(repository)
        named = full == self.name or full.endswith(f"/{self.name}") or self.name.endswith(f"/{full}")
        return named and (action in self.actions or "*" in self.actions)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says."""

    user: str | None
    token: str | None
    issuers: frozenset[str]
    subject: str | None
    granted: tuple[Grant, ...]
    expires: float
    bound: str
    login: ClientLogin | None = None
    """What the client has sent for a registry."""


class Bearer:
    """Signs and reads tokens."""

    def __init__(self, key: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        self._find_key = key
        self._clock = clock

    @cached_property
    def _key(self) -> bytes:
        return self._find_key()

    def sign(self, identity: Identity, of: str, granted: tuple[Grant, ...]) -> tuple[str, int]:
        """Returns a token, and its life in seconds. `of` is the hash of the password or token that was given."""
        import jwt

        now = int(self._clock())
        claims = {
            "iss": SERVICE,
            "aud": SERVICE,
            "iat": now,
            "exp": now + _LIFE,
            "sub": identity.user or "",
            "token": identity.token or "",
            "oidc": sorted(identity.issuers),
            "oidc_sub": identity.subject or "",
            "bound": self.bound_to(of),
            "access": [{"type": "repository", "name": one.name, "actions": sorted(one.actions)} for one in granted],
        }
        if identity.login is not None:
            claims["login"] = self._seal(identity.login)
        return jwt.encode(claims, self._key, algorithm="HS256"), _LIFE

    def read(self, given: str) -> Claims | None:
        """Returns what a token says; None if it is not one of ours, or over."""
        import jwt

        try:
            found = jwt.decode(
                given, self._key, algorithms=["HS256"], audience=SERVICE, issuer=SERVICE, options={"require": ["exp"]}
            )
            granted = tuple(Grant(str(one["name"]), frozenset(one["actions"])) for one in found["access"])
            return Claims(
                found["sub"] or None,
                found["token"] or None,
                frozenset(found["oidc"]),
                found["oidc_sub"] or None,
                granted,
                float(found["exp"]),
                str(found["bound"]),
                self._unseal(found["login"]) if "login" in found else None,
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return None

    def _seal(self, login: ClientLogin) -> str:
        """Encrypts what a client has sent, so that only it keeps its password, in a form that is of use only here: any worker, and the mirror after a restart, can
        ask the registry with it."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE)
        plain = json.dumps([login.registry, login.user, login.password]).encode()
        return base64.b64encode(nonce + AESGCM(self._sealing_key).encrypt(nonce, plain, None)).decode()

    def _unseal(self, sealed: str) -> ClientLogin:
        """Raises ValueError."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        data = base64.b64decode(sealed, validate=True)
        try:
            registry, user, password = json.loads(AESGCM(self._sealing_key).decrypt(data[:_NONCE], data[_NONCE:], None))
        except InvalidTag:
            raise ValueError("it was encrypted with another key") from None
        return ClientLogin(registry, user, password)

    @cached_property
    def _sealing_key(self) -> bytes:
        return hmac.digest(self._key, b"clients' logins", "sha256")

    def is_of(self, claims: Claims, of: str) -> bool:
        """Returns whether a token was got by what has this hash now."""
        return self.binds(claims.bound, of)

    def binds(self, bound: str, of: str) -> bool:
        """Returns whether `bound` was made of what has this hash."""
        return hmac.compare_digest(bound, self.bound_to(of))

    def bound_to(self, of: str) -> str:
        """What ties a token to the password or the token by which it was got, whose hash `of` is."""
        return hmac.digest(self._key, b"bound to " + of.encode(), "sha256").hex()[:32]


def parse_scopes(scopes: list[str]) -> tuple[Grant, ...]:
    """Takes the scopes of a request for a token, such as ``repository:library/alpine:pull,push``; others, which the mirror does not have, are left out."""
    found = []
    for scope in " ".join(scopes).split()[:_MOST_GRANTS]:
        kind, _, rest = scope.partition(":")
        name, colon, actions = rest.rpartition(":")
        if kind.partition("(")[0] == "repository" and colon:
            found.append(Grant(name[:300], frozenset(actions.split(","))))
    return tuple(found)
