"""A client's own user and password for a registry, and whose request a task works for.

Requests to that registry which a client's request causes are sent with them. That is kept in a context variable, which tasks inherit from those that start them,
so that what lies between a request and a registry need not pass passwords on.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_SALT = secrets.token_bytes(16)


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """What a client has sent for `registry`, not checked yet. Nothing that is logged or kept may have the password: use `key` to remember it by."""

    registry: str
    user: str
    password: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.registry}/{self.user}"

    @property
    def key(self) -> bytes:
        """The same for the same registry, user and password, in this process."""
        parts = (self.registry, self.user, self.password)
        return hashlib.blake2b(b"\0".join(part.encode(errors="replace") for part in parts), key=_SALT, digest_size=16).digest()


_acting: ContextVar[ClientLogin | None] = ContextVar("client login", default=None)


def act_for(login: ClientLogin | None) -> None:
    """Says whose request the current task works for from now on; None for nobody's, or a client's who has not sent a user and password."""
    _acting.set(login)


def acting_for() -> ClientLogin | None:
    return _acting.get()


@contextmanager
def on_behalf_of(login: ClientLogin | None) -> Iterator[None]:
    before = _acting.set(login)
    try:
        yield
    finally:
        _acting.reset(before)
