"""Authentication: changes need the admin token, in a header, or a session and a form of the dashboard's own pages.

A session is a signed cookie: it is valid in every process that knows the token, and after restarts. Logging out ends one session, another token ends all.
A form must carry a secret that only the session's own pages know, and must come from the mirror's origin.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

from aiohttp import web

from mirror.access.guesses import DELAY, Guesses
from mirror.api.browser_logins import LOGGED_IN
from mirror.api.client_network import client_network
from mirror.api.gate import ADMIN_USER
from mirror.errors import AdminNeeded, Refused, TooManyGuesses
from mirror.web.sessions import EndedSessions

COOKIE = "mirror_admin"
LASTS = 12 * 3600
"""Seconds of a session."""


class Admin:
    """Checks tokens, sessions and where a request comes from. Times in seconds since the epoch."""

    def __init__(self, token: str, ended: EndedSessions, clock: Callable[[], float] = time.time) -> None:
        self._token = token.encode()
        self._ended = ended
        self._key = hmac.digest(self._token, b"mirror: sessions", "sha256")
        self._clock = clock
        self._guesses = Guesses()

    def session(self, request: web.BaseRequest) -> str | None:
        """The session of a request; None if it has none, or one that is forged, expired or logged out."""
        given = request.cookies.get(COOKIE, "")
        expires, _, rest = given.partition(".")
        nonce, _, signature = rest.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 12 and int(expires) > self._clock()):
            return None
        if not self._same(signature, self._signed(f"session {expires}.{nonce}")):
            return None
        return given if _name(given) not in self._ended else None

    def session_of(self, request: web.BaseRequest) -> str | None:
        """The session of whoever may change anything: of the admin token, or of a user who may administer the mirror; None if the request has neither."""
        user = request.get(LOGGED_IN)
        return self.session(request) or (user.session if user is not None and user.is_admin else None)

    async def begin(self, request: web.BaseRequest, token: str) -> str:
        """Starts a session for a client that knows the token. Raises AdminNeeded, TooManyGuesses."""
        await self._check(request, token)
        body = f"{int(self._clock()) + LASTS}.{secrets.token_hex(8)}"
        return f"{body}.{self._signed(f'session {body}')}"

    def end(self, request: web.BaseRequest) -> str | None:
        """Ends the session of a request: copies of its cookie are worth nothing from then on. Returns the session's name; None if there is none."""
        session = self.session(request)
        if session is None:
            return None
        self._ended.add(_name(session), self._clock())
        return _name(session)

    def form_secret(self, session: str) -> str:
        """The secret that the forms of a session carry; no other site can know it."""
        return self._signed(f"form {session}")

    async def allow(self, request: web.BaseRequest, form_secret: str) -> None:
        """Returns if a change is allowed: by the token in the header, or by a form of a session. Raises AdminNeeded, Refused, TooManyGuesses."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            # Browsers do not send this by themselves, so no other site can forge it.
            await self._check(request, token.strip())
            return
        if ADMIN_USER in request:
            # Browsers send a password by themselves, so the request must come from one of the mirror's own pages, or from no page.
            check_origin(request)
            return
        session = self.session_of(request)
        if session is None:
            raise AdminNeeded("changing anything needs the admin token: log in, or send it as Authorization: Bearer")
        check_origin(request)
        if not self._same(form_secret, self.form_secret(session)):
            raise Refused("this form is of another session: load the page again")

    async def _check(self, request: web.BaseRequest, token: str) -> None:
        """Returns at once for the right token, however many wrong ones came from the same address, which may be a proxy's. Raises AdminNeeded,
        TooManyGuesses."""
        if hmac.compare_digest(token.encode(errors="replace"), self._token):
            return
        if await self._guesses.wrong(client_network(request.remote)):
            raise TooManyGuesses("that is not the admin token, and there were many wrong ones from this address", DELAY)
        raise AdminNeeded("that is not the admin token")

    def _signed(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(errors="replace"), "sha256").hex()

    def _same(self, one: str, other: str) -> bool:
        return hmac.compare_digest(hashlib.sha256(one.encode(errors="replace")).digest(), hashlib.sha256(other.encode()).digest())


def check_origin(request: web.BaseRequest) -> None:
    """Returns if a form was sent by one of the mirror's own pages. Raises Refused.

    Browsers send Sec-Fetch-Site over https and on loopback (Fetch Metadata), and Origin elsewhere (Fetch, section 3.2).
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        good = site == "same-origin"
    else:
        good = origin is None or origin.partition("://")[2].lower() == request.headers.get("Host", "").lower() != ""
    if not good:
        raise Refused(
            "this was sent from another site than the mirror's own page; a proxy before the mirror must pass on the Host header as it is"
        )


def _name(session: str) -> str:
    """A session without its signature."""
    return session.rpartition(".")[0]
