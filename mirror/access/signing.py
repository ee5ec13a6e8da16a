"""Signs what the mirror itself hands out to those who have logged in, bearer tokens and sessions, as JSON Web Tokens (RFC 7519).

Each says who has logged in, never what is allowed: that is decided at each request. It is bound to the password, or the token, by which it was got, and is worth
nothing once that is changed or removed. It is good in every process on the cache directory, after a restart, and at all mirrors of a fleet, whose key comes from the fleet's token.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    key: bytes = field(repr=False)
    """What it was signed with."""


def fleet_key(token: str) -> bytes:
    """Returns the key that all mirrors sign with that have a fleet's token. Blocks. Whoever is given something that is signed can try tokens at home, so each try costs as much as RFC 7914 (section 2)
    has for passwords: a tenth of a second, 16 MiB."""
    return hashlib.scrypt(token.encode(), salt=b"mirror: signs for the fleet", n=2**14, r=8, p=1, dklen=32)


class Signer:
    """Signs and reads claims, with one key for all processes on a cache directory, or of a fleet."""

    def __init__(self, key: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        """`key` is called once, when it is needed. It may block, and raise OSError, and so may all methods."""
        self._find_key = key
        self._clock = clock
        self.shared: bytes | None = None
        """The key of all mirrors of the fleet; None where there is none. What was signed with the mirror's own key before counts on."""

    @cached_property
    def _own(self) -> bytes:
        return self._find_key()

    @property
    def key(self) -> bytes:
        """What is signed with."""
        return self._own if self.shared is None else self.shared

    def sign(self, audience: str, life: int, identity: Identity, of: str, more: Mapping[str, Any]) -> str:
        """Returns what says for `life` seconds who somebody is. `of` is the hash of the password or the token that was given, empty for neither."""
        import jwt

        key, now = self.key, int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "iat": now,
            "exp": now + life,
            "sub": identity.user or "",
            "token": identity.token or "",
            "oidc": sorted(identity.issuers),
            "oidc_sub": identity.subject or "",
            "bound": _bound_to(of, key),
            **more,
        }
        return jwt.encode(claims, key, algorithm="HS256")

    def read(self, audience: str, given: str, *needed: str) -> Signed | None:
        """Returns what was signed for an audience, with the claims `needed` of it; None if this was not, or is over."""
        found = self._read(audience, given, needed, self.key)
        return self._read(audience, given, needed, self._own) if found is None and self.shared is not None else found

    def _read(self, audience: str, given: str, needed: tuple[str, ...], key: bytes) -> Signed | None:
        import jwt

        # The clock of the mirror that has signed may be ahead a little.
        options: Any = {"require": ["exp", *needed], "verify_iat": False}
        try:
            found = jwt.decode(given, key, algorithms=["HS256"], audience=audience, issuer=ISSUER, options=options)
            return Signed(
                found["sub"] or None,
                found["token"] or None,
                frozenset(found["oidc"]),
                found["oidc_sub"] or None,
                float(found["exp"]),
                str(found["bound"]),
                found,
                key,
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return None

    def is_of(self, signed: Signed, of: str) -> bool:
        """Returns whether it was got by the password or the token that has this hash now."""
        return hmac.compare_digest(signed.bound, _bound_to(of, signed.key))


def key_for(purpose: bytes, key: bytes) -> bytes:
    """Returns a key of 32 bytes that nothing is signed with, of one that is signed with."""
    return hmac.digest(key, purpose, "sha256")


def _bound_to(of: str, key: bytes) -> str:
    return hmac.digest(key, b"bound to " + of.encode(), "sha256").hex()[:32]
