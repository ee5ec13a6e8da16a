"""Requests of other mirrors: those of the same fleet, and those to which this one is a parent."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable

from mirror.access.rules import Identity
from mirror.api.context import RequestContext
from mirror.cdn_loop import HEADER, Looped, Passed, parse

log = logging.getLogger(__name__)

_MOST = 20
"""Mirrors that a request may have passed."""


class Mirrors:
    """Recognises them."""

    def __init__(self, own: str, token: Callable[[], str | None]) -> None:
        """`own` is what this mirror is called. `token` returns what proves that a mirror belongs to it, None if nothing does; it may raise OSError, ValueError."""
        self._own = own.lower()
        self._token = token

    def recognise(self, context: RequestContext) -> Passed | None:
        """Notes in `context` that a mirror asks, and returns what the request has passed; None for a client's. Raises Looped."""
        request = context.request
        if HEADER not in request.headers:
            return None
        found = parse(", ".join(request.headers.getall(HEADER)))
        if not found.ids:
            return found
        if self._own in found.ids or len(found.ids) > _MOST:
            raise Looped(f"this request has passed {self._own} before: do not make mirrors each other's parents (fleet.parents)")
        context.mirror = found.ids[-1]
        context.is_peer = found.by_peer
        # One below is a client, whatever it shows: this fleet's token is not for it.
        if found.by_peer and self._has_token(request.headers.get("Authorization", "")):
            context.is_trusted_mirror = True
            context.identity = Identity(token=f"fleet:{context.mirror}")
        return found

    def _has_token(self, authorization: str) -> bool:
        scheme, _, sent = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        try:
            token = self._token()
        except (OSError, ValueError) as error:
            log.warning("the token of the fleet cannot be read, so that other mirrors are treated as clients: %s", error)
            return False
        return token is not None and hmac.compare_digest(sent.strip().encode(errors="replace"), token.encode())
