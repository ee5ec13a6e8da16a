"""Who may change anything: whoever has the admin token, by a form and a cookie, or in a header.

A session is a signed cookie and nothing else, so that it holds in every process that knows the token, and over restarts; another token ends them all. The form's
answer is taken only from the page itself: by a secret that only the page knows, and by where the browser says that it comes from.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from mirror.errors import AdminNeeded, Refused, TooManyGuesses

COOKIE = "mirror_admin"
LASTS = 12 * 3600
"""Seconds of a session."""
_GUESSES = 5
_WAIT = 60.0
_MOST_GUESSERS = 10_000


class Admin:
    """Checks tokens, sessions and where a request comes from. Times in seconds since the epoch."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._token = token.encode()
        self._key = hmac.digest(self._token, b"mirror: sessions", "sha256")
        self._clock = clock
        self._guesses: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def session(self, request: web.BaseRequest) -> str | None:
        """The session of a request, where it is a good one."""
        given = request.cookies.get(COOKIE, "")
        expires, _, rest = given.partition(".")
        nonce, _, signature = rest.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 12 and int(expires) > self._clock()):
            return None
        return given if self._same(signature, self._signed(f"session {expires}.{nonce}")) else None

    def begin(self, request: web.BaseRequest, token: str) -> str:
        """A new session for whoever knows the token. Raises AdminNeeded, TooManyGuesses."""
        self._check(request, token)
        body = f"{int(self._clock()) + LASTS}.{secrets.token_hex(8)}"
        return f"{body}.{self._signed(f'session {body}')}"

    def form_secret(self, session: str) -> str:
        """What the forms of a session carry, and no other site can know."""
        return self._signed(f"form {session}")

    def allow(self, request: web.BaseRequest, form_secret: str) -> None:
        """Lets a change pass: with the token in the header, or from a form of a session. Raises AdminNeeded, Refused, TooManyGuesses."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            # No browser sends this by itself: there is nothing to be forged.
            self._check(request, token.strip())
            return
        session = self.session(request)
        if session is None:
            raise AdminNeeded("changing anything needs the admin token: log in, or send it as Authorization: Bearer")
        check_origin(request)
        if not self._same(form_secret, self.form_secret(session)):
            raise Refused("this form is of another session: load the page again")

    def _check(self, request: web.BaseRequest, token: str) -> None:
        place, now = _place(request.remote), self._clock()
        count, since = self._guesses.get(place, (0, now))
        if now - since >= _WAIT:
            count, since = 0, now
        if count >= _GUESSES:
            raise TooManyGuesses("too many wrong tokens from this address", max(1.0, since + _WAIT - now))
        if hmac.compare_digest(token.encode(errors="replace"), self._token):
            self._guesses.pop(place, None)
            return
        self._guesses[place] = count + 1, now
        self._guesses.move_to_end(place)
        if len(self._guesses) > _MOST_GUESSERS:
            self._guesses.popitem(last=False)
        raise AdminNeeded("that is not the admin token")

    def _signed(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(errors="replace"), "sha256").hex()

    def _same(self, one: str, other: str) -> bool:
        return hmac.compare_digest(hashlib.sha256(one.encode(errors="replace")).digest(), hashlib.sha256(other.encode()).digest())


def check_origin(request: web.BaseRequest) -> None:
    """Lets a form's answer pass that this mirror's own page sent. Raises Refused.

    Browsers say so in Sec-Fetch-Site over https and on the machine itself (Fetch Metadata), and elsewhere in Origin (Fetch, section 3.2).
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


def _place(remote: str | None) -> str:
    """Whose guesses are counted together: an address's, or its network's, of which one machine has all (RFC 6177)."""
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return remote or ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
