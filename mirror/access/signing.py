"""Signs what the mirror itself hands out to those who have logged in, bearer tokens and sessions, as JSON Web Tokens (RFC 7519).

Each says who has logged in, never what is allowed: that is decided at each request. It is bound to the password, or the token, by which it was got, and is worth
nothing once that is changed or removed. It is good in every process on the cache directory, and after a restart.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mirror.access.rules import Identity

ISSUER = "mirror"


@dataclass(frozen=True, slots=True)
class Signed:
    """What is signed of whoever has logged in."""

    user: str | None
    token: str | None
    """The name of a token."""
    issuers: frozenset[str]
    subject: str | None
    """What the issuer calls it."""
    expires: float
    """In seconds since the epoch."""
    bound: str
    """What ties it to the password, or the token, by which it was got."""
    more: Mapping[str, Any]
    """Claims of one audience."""


class Signer:
    """Signs and reads claims, with one key for all processes on a cache directory."""

    def __init__(self, key: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        """`key` is called once, when it is needed. It may block, and raise OSError, and so may all methods."""
        self._find_key = key
        self._clock = clock

    @cached_property
    def _key(self) -> bytes:
        return self._find_key()

    def sign(self, audience: str, life: int, identity: Identity, of: str, more: Mapping[str, Any]) -> str:
        """Returns what says for `life` seconds who somebody is. `of` is the hash of the password or the token that was given, empty for neither."""
        import jwt

        now = int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "iat": now,
            "exp": now + life,
            "sub": identity.user or "",
            "token": identity.token or "",
            "oidc": sorted(identity.issuers),
            "oidc_sub": identity.subject or "",
            "bound": self._bound_to(of),
            **more,
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def read(self, audience: str, given: str, *needed: str) -> Signed | None:
        """Returns what was signed for an audience, with the claims `needed` of it; None if this was not, or is over."""
        import jwt

        try:
            found = jwt.decode(
                given, self._key, algorithms=["HS256"], audience=audience, issuer=ISSUER, options={"require": ["exp", *needed]}
            )
            return Signed(
                found["sub"] or None,
                found["token"] or None,
                frozenset(found["oidc"]),
                found["oidc_sub"] or None,
                float(found["exp"]),
                str(found["bound"]),
                found,
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return None

    def is_of(self, signed: Signed, of: str) -> bool:
        """Returns whether it was got by the password or the token that has this hash now."""
        return hmac.compare_digest(signed.bound, self._bound_to(of))

    def key_for(self, purpose: bytes) -> bytes:
        """Returns a key of 32 bytes that nothing is signed with."""
        return hmac.digest(self._key, purpose, "sha256")

    def _bound_to(self, of: str) -> str:
        return hmac.digest(self._key, b"bound to " + of.encode(), "sha256").hex()[:32]
