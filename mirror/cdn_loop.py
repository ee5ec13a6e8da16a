"""Which mirrors a request has passed before this one: each names itself in ``CDN-Loop`` (RFC 8586). And whom this one may ask for it, so that mirrors that ask each other never wait in a circle.

A task works for one request, or for none, and inherits this from the task that began it. So a download that several requests wait for asks only those whom it could ask for the request
that began it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

from mirror.errors import MirrorError, UpstreamError

HEADER = "CDN-Loop"
PEER, CHILD = "peer", "child"
"""What a mirror is to the one that it asks: of the same fleet, or below it. In the parameter ``mirror`` of its entry."""

_ENTRY = re.compile(r'\s*([^\s;,"]{1,300})((?:\s*;\s*[^\s;,=]+\s*=\s*(?:"[^",;]*"|[^\s;,"]*))*)\s*')
_ROLE = re.compile(r';\s*mirror\s*=\s*"?(peer|child)"?(?:\s*;|\s*$)', re.IGNORECASE)


class Looped(MirrorError):
    """The request has passed this mirror before: mirrors are each other's parents. 508 (RFC 5842, section 7.2)."""

    status = 508
    code = "UNAVAILABLE"


class AskedOfPeer(UpstreamError):
    """Another mirror of the fleet asks for what this one asks such a mirror for: they would wait for each other. The one that asks goes on to the registry."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The mirrors that a request has passed; none for a client's own."""

    field: str = ""
    """The header as it came."""
    ids: tuple[str, ...] = ()
    """What the mirrors are called, the last one asks."""
    by_peer: bool = False
    """True if a mirror of the same fleet asks. Then this one asks no other of the fleet."""
    registry_only: bool = False
    """True if no mirror is asked, but the registry itself."""

    def extended(self, own: str, role: str) -> str:
        """Returns the header of a request to the next mirror, to which this one, called `own`, is a `PEER` or a `CHILD`."""
        entry = f"{own}; mirror={role}"
        return f"{self.field}, {entry}" if self.field else entry


_NONE = Passed()
_passed: ContextVar[Passed] = ContextVar("passed", default=_NONE)


def passed() -> Passed:
    """Returns what the request has passed that the current task works for."""
    return _passed.get()


def parse(field: str) -> Passed:
    """Parses the header. Entries that are no mirror's, or not to be understood, count for nothing."""
    ids: list[str] = []
    role = ""
    for text in field.split(","):
        entry = _ENTRY.fullmatch(text)
        found = _ROLE.search(entry[2]) if entry is not None else None
        if entry is not None and found is not None:
            ids.append(entry[1].lower())
            role = found[1].lower()
    return Passed(field, tuple(ids), role == PEER)


@contextlib.contextmanager
def entered(found: Passed) -> Iterator[None]:
    """Makes the current task, and those that it begins, work for a request that has passed these."""
    token = _passed.set(found)
    try:
        yield
    finally:
        _passed.reset(token)


def asking_the_registry_only() -> contextlib.AbstractContextManager[None]:
    """Makes the current task, and those that it begins, ask no other mirror: where what is cached there says nothing."""
    return entered(replace(_passed.get(), registry_only=True))
