"""Sessions of people who have logged in to the dashboard, as signed cookies: JSON Web Tokens (RFC 7519) by the key that signs bearer tokens too.

A session says who has logged in, never what is allowed: that is decided at each request. It is worth nothing once the password, or the token, by which it was got
is changed or removed, and it is good in every process on the cache directory, and after a restart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from mirror.access.rules import Identity

LASTS = 12 * 3600
"""Seconds of a session."""
_AUDIENCE = "mirror dashboard"
"""Not that of bearer tokens: neither is taken for the other."""
_ISSUER = "mirror"


@dataclass(frozen=True, slots=True)
class Session:
    """What a session says."""

    name: str
    """When it ends, in seconds since the epoch, a dot, and a random number: by this it is remembered when it was ended before."""
    user: str | None
    token: str | None
    issuers: frozenset[str]
    subject: str | None
    groups: frozenset[str]
    """What an issuer says; those of the settings are looked up."""
    expires: float
    bound: str


class Sessions:
    """Signs and reads sessions."""

    def __init__(self, key: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        self._find_key = key
        self._clock = clock

    @cached_property
    def _key(self) -> bytes:
        return self._find_key()

    def sign(self, identity: Identity, bound: str) -> str:
        """Returns a session of whoever has logged in. `bound` is what ties it to the password or token. Blocks for the key. Raises OSError."""
        import jwt

        now = int(self._clock())
        claims = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "iat": now,
            "exp": now + LASTS,
            "jti": secrets.token_hex(8),
            "sub": identity.user or "",
            "token": identity.token or "",
            "oidc": sorted(identity.issuers),
            "oidc_sub": identity.subject or "",
            "groups": sorted(identity.groups) if identity.issuers else [],
            "bound": bound,
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def read(self, given: str) -> Session | None:
        """Returns what a session says; None if it is none of ours, or over. Blocks for the key. Raises OSError."""
        import jwt

        try:
            found = jwt.decode(
                given, self._key, algorithms=["HS256"], audience=_AUDIENCE, issuer=_ISSUER, options={"require": ["exp", "jti"]}
            )
            return Session(
                f"{int(found['exp'])}.{found['jti']}",
                found["sub"] or None,
                found["token"] or None,
                frozenset(found["oidc"]),
                found["oidc_sub"] or None,
                frozenset(found["groups"]),
                float(found["exp"]),
                str(found["bound"]),
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return None
