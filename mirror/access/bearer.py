"""Bearer tokens that the mirror signs and checks itself (signing.py): the registry's token flow. One says who has logged in, and what was asked for."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from typing import Any

from mirror.access.rules import Identity
from mirror.access.signing import ISSUER, Signed, Signer, key_for
from mirror.client_login import ClientLogin
from mirror.names import Repository

SERVICE = ISSUER
"""What the challenge calls the service, and the tokens their audience."""
_LIFE = 300
"""Seconds. Clients ask again when a token is over."""
_MOST_GRANTS = 50
_SEALS = b"clients' logins"
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

    who: Signed
    granted: tuple[Grant, ...]
    login: ClientLogin | None
    """What the client has sent for a registry."""


class Bearer:
    """Signs and reads tokens."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def sign(self, identity: Identity, of: str, granted: tuple[Grant, ...]) -> tuple[str, int]:
        """Returns a token, and its life in seconds. `of` is as for `Signer.sign`."""
        more: dict[str, Any] = {
            "access": [{"type": "repository", "name": one.name, "actions": sorted(one.actions)} for one in granted]
        }
        if identity.login is not None:
            more["login"] = self._seal(identity.login)
        return self._signer.sign(SERVICE, _LIFE, identity, of, more), _LIFE

    def read(self, given: str) -> Claims | None:
        """Returns what a token says; None if it is not one of ours, or over."""
        who = self._signer.read(SERVICE, given, "access")
        if who is None:
            return None
        granted = tuple(Grant(str(one["name"]), frozenset(one["actions"])) for one in who.more["access"])
        try:
            return Claims(who, granted, _unseal(who.more["login"], who.key) if "login" in who.more else None)
        except ValueError:
            return None

    def _seal(self, login: ClientLogin) -> str:
        """Encrypts what a client has sent, so that only it keeps its password, in a form that is of use only here: any worker, and the mirror after a restart, can
        ask the registry with it."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE)
        plain = json.dumps([login.registry, login.user, login.password]).encode()
        return base64.b64encode(nonce + AESGCM(key_for(_SEALS, self._signer.key)).encrypt(nonce, plain, None)).decode()


def _unseal(sealed: str, key: bytes) -> ClientLogin:
    """Raises ValueError. `key` is what the token was signed with."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = base64.b64decode(sealed, validate=True)
    try:
        registry, user, password = json.loads(AESGCM(key_for(_SEALS, key)).decrypt(data[:_NONCE], data[_NONCE:], None))
    except InvalidTag:
        raise ValueError("it was encrypted with another key") from None
    return ClientLogin(registry, user, password)


def parse_scopes(scopes: list[str]) -> tuple[Grant, ...]:
    """Takes the scopes of a request for a token, such as ``repository:library/alpine:pull,push``; others, which the mirror does not have, are left out."""
    found = []
    for scope in " ".join(scopes).split()[:_MOST_GRANTS]:
        kind, _, rest = scope.partition(":")
        name, colon, actions = rest.rpartition(":")
        if kind.partition("(")[0] == "repository" and colon:
            found.append(Grant(name[:300], frozenset(actions.split(","))))
    return tuple(found)
