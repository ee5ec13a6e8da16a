"""Who may change anything: whoever has the admin token, by a form and a cookie, or in a header.

A session is a signed cookie, so that it holds in every process that knows the token, and over restarts; another token ends them all, and logging out ends one.
A form is accepted only from the page itself: by a secret that only the page knows, and by where the browser says that it comes from.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from aiohttp import web

from mirror.errors import AdminNeeded, Refused, TooManyGuesses
from mirror.web.sessions import EndedSessions

COOKIE = "mirror_admin"
LASTS = 12 * 3600
"""Seconds of a session."""
_GUESSES = 5
"""Wrong tokens from one address after which further ones are answered slowly, for `_WAIT` seconds."""
_WAIT = 60.0
_DELAY = 2.0
"""Seconds by which the answer to a wrong token is then delayed."""
_MOST_DELAYED = 8
"""Answers to one address that are delayed at a time: what they hold is bounded."""
_MOST_GUESSERS = 10_000


class Admin:
    """Checks tokens, sessions and where a request comes from. Times in seconds since the epoch."""

    def __init__(self, token: str, ended: EndedSessions, clock: Callable[[], float] = time.time) -> None:
        self._token = token.encode()
        self._ended = ended
        self._key = hmac.digest(self._token, b"mirror: sessions", "sha256")
        self._clock = clock
        self._guesses: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._delayed: Counter[str] = Counter()

    def session(self, request: web.BaseRequest) -> str | None:
        """The session of a request; None where it has none, or one that is forged, expired or logged out."""
        given = request.cookies.get(COOKIE, "")
        expires, _, rest = given.partition(".")
        nonce, _, signature = rest.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 12 and int(expires) > self._clock()):
            return None
        if not self._same(signature, self._signed(f"session {expires}.{nonce}")):
            return None
        return given if _name(given) not in self._ended else None

    async def begin(self, request: web.BaseRequest, token: str) -> str:
        """A new session for whoever knows the token. Raises AdminNeeded, TooManyGuesses."""
        await self._check(request, token)
        body = f"{int(self._clock()) + LASTS}.{secrets.token_hex(8)}"
        return f"{body}.{self._signed(f'session {body}')}"

    def end(self, request: web.BaseRequest) -> None:
        """Ends the session of a request, wherever else its cookie may be."""
        if (session := self.session(request)) is not None:
            self._ended.add(_name(session), self._clock())

    def form_secret(self, session: str) -> str:
        """What the forms of a session carry, and no other site can know."""
        return self._signed(f"form {session}")

    async def allow(self, request: web.BaseRequest, form_secret: str) -> None:
        """Lets a change pass: with the token in the header, or from a form of a session. Raises AdminNeeded, Refused, TooManyGuesses."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            # No browser sends this by itself: there is nothing to be forged.
            await self._check(request, token.strip())
            return
        session = self.session(request)
        if session is None:
            raise AdminNeeded("changing anything needs the admin token: log in, or send it as Authorization: Bearer")
        check_origin(request)
        if not self._same(form_secret, self.form_secret(session)):
            raise Refused("this form is of another session: load the page again")

    async def _check(self, request: web.BaseRequest, token: str) -> None:
        """Lets the right token pass at once, however many wrong ones came from the same address: a proxy's, or a whole network's. Raises AdminNeeded,
        TooManyGuesses."""
        if hmac.compare_digest(token.encode(errors="replace"), self._token):
            return
        place = _place(request.remote)
        now = self._clock()
        count, since = self._guesses.get(place, (0, now))
        if now - since >= _WAIT:
            count, since = 0, now
        self._guesses[place] = count + 1, since
        self._guesses.move_to_end(place)
        if len(self._guesses) > _MOST_GUESSERS:
            self._guesses.popitem(last=False)
        if count < _GUESSES:
            raise AdminNeeded("that is not the admin token")
        if self._delayed[place] >= _MOST_DELAYED:
            raise TooManyGuesses("too many wrong tokens from this address at the same time", _DELAY)
        self._delayed[place] += 1
        try:
            await asyncio.sleep(_DELAY)
        finally:
            self._delayed[place] -= 1
            if not self._delayed[place]:
                del self._delayed[place]
        raise TooManyGuesses("that is not the admin token, and there were many wrong ones from this address", _DELAY)

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


def _name(session: str) -> str:
    """A session without its signature."""
    return session.rpartition(".")[0]


def _place(remote: str | None) -> str:
    """Whose guesses are counted together: an address's, or its network's, of which one machine has all (RFC 6177)."""
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return remote or ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
