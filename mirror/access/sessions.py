"""Sessions of people who have logged in to the dashboard, as signed cookies (signing.py)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from mirror.access.rules import Identity
from mirror.access.signing import Signed, Signer

LASTS = 12 * 3600
"""Seconds of a session."""
_AUDIENCE = "mirror dashboard"
"""Not that of bearer tokens: neither is taken for the other."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a session says."""

    name: str
    """When it ends, in seconds since the epoch, a dot, and a random number: by this it is remembered when it was ended before."""
    who: Signed
    groups: frozenset[str]
    """What an issuer says; those of the settings are looked up."""


class Sessions:
    """Signs and reads sessions."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def sign(self, identity: Identity, of: str) -> str:
        """Returns a session of whoever has logged in. `of` is as for `Signer.sign`. Blocks for the key. Raises OSError."""
        groups = sorted(identity.groups) if identity.issuers else []
        return self._signer.sign(_AUDIENCE, LASTS, identity, of, {"jti": secrets.token_hex(8), "groups": groups})

    def read(self, given: str) -> Session | None:
        """Returns what a session says; None if it is none of ours, or over. Blocks for the key. Raises OSError."""
        who = self._signer.read(_AUDIENCE, given, "jti", "groups")
        if who is None:
            return None
        return Session(f"{int(who.expires)}.{who.more['jti']}", who, frozenset(who.more["groups"]))
