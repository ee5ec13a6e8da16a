"""People who have logged in to the dashboard with a user and a password, or by an issuer: a session in a cookie says who they are.

The cookie counts for the dashboard only, never for the registry's API, so a page of another site cannot use it to pull or push. Changes need the secret of the
session's own forms besides (`mirror.web.admin`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from aiohttp import web

from mirror import metrics
from mirror.access.access import Access
from mirror.access.oidc_login import Begun
from mirror.access.rules import Action, Identity
from mirror.api.client_network import client_network
from mirror.api.context import RequestContext
from mirror.api.gate import Gate
from mirror.errors import LoginWrong, NotAllowed, TooManyGuesses
from mirror.names import Repository

SESSION_COOKIE = "mirror_session"
_FOR_SOME = ("/", "/images", "/class", "/account")
_FOR_SOME_BELOW = ("/image/", "/repository/")
"""Pages that name only what whoever has logged in may pull; the others name images of all kinds."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Whoever sends a request for the dashboard."""

    name: str
    is_admin: bool
    session: str
    """The value of the cookie."""
    may_see: Callable[[Repository], bool] | None
    """Which repositories may be named; None for all."""


LOGGED_IN = web.RequestKey("logged in", LoggedIn)
"""The key of a request that has a session."""


class Ended(Protocol):
    """Sessions that were ended before their time."""

    def __contains__(self, session: str) -> bool: ...
    def add(self, session: str, now: float) -> None: ...


class BrowserLogins:
    """Begins, knows and ends sessions."""

    def __init__(self, access: Access, gate: Gate, ended: Ended) -> None:
        self._access = access
        self._gate = gate
        self._ended = ended

    @property
    def offered(self) -> bool:
        """True if users can log in: where there are ``[[access]]`` tables, by which they may do something."""
        return self._access.rules is not None

    async def recognise(self, context: RequestContext) -> None:
        """Notes who sends a request, if it has a session and no other proof."""
        request = context.request
        given = request.cookies.get(SESSION_COOKIE)
        if not given or not self.offered or "Authorization" in request.headers:
            return
        try:
            login, name = await asyncio.to_thread(self._access.identities.of_session, given, self._gate.client(request))
        except (LoginWrong, OSError):
            # It is over: a page says so by asking for the password.
            return
        if name in self._ended:
            return
        context.identity, context.has_login = login.identity, True
        is_admin = self._access.decide(login.identity, Action.ADMIN, None).allowed
        may_see = None if is_admin else self._gate.filter(context)
        request[LOGGED_IN] = LoggedIn(_name_of(login.identity), is_admin, given, may_see)

    def check_page(self, context: RequestContext, path: str) -> None:
        """Returns if whoever has a session may see a page, or what it shows to them. Raises NotAllowed."""
        if context.request[LOGGED_IN].may_see is None or path in _FOR_SOME or path.startswith(_FOR_SOME_BELOW):
            return
        raise NotAllowed("this page names images of all kinds, and is for those who may pull all of them")

    async def begin(self, request: web.BaseRequest, user: str, password: str) -> str:
        """Returns a session for a user. Raises LoginWrong, TooManyGuesses; slow after many wrong ones, as everywhere."""
        client, network = self._gate.client(request), client_network(request.remote)
        try:
            login = await self._access.identities.of_password(user, password, client, network)
        except (LoginWrong, TooManyGuesses) as error:
            self._note(request, Identity(), "wrong login", error.message)
            raise
        return await self.begin_as(request, login.identity)

    @property
    def issuers(self) -> list[str]:
        """The issuers by which people can log in."""
        return self._access.oidc_logins.names if self.offered else []

    async def begin_by(self, name: str, redirect_uri: str, to: str) -> Begun:
        """Begins to log in by an issuer. Raises as `OidcLogins.begin` does."""
        return await self._access.oidc_logins.begin(name, redirect_uri, to)

    async def end_by(self, request: web.BaseRequest, name: str, cookie: str, query: dict[str, str]) -> tuple[str, str]:
        """Returns a session for whoever comes back from an issuer, and the page to lead to. Raises as `OidcLogins.end` does."""
        try:
            identity, to = await self._access.oidc_logins.end(name, cookie, query, self._gate.client(request))
        except LoginWrong as error:
            self._note(request, Identity(), "wrong login", error.message)
            raise
        return await self.begin_as(request, identity), to

    async def begin_as(self, request: web.BaseRequest, identity: Identity) -> str:
        """Returns a session for whoever has proved who they are."""
        self._note(request, identity, "allowed")
        # A cookie has no room for all groups that an issuer may name.
        known = frozenset[str]().union(*(rule.groups for rule in self._access.rules or ()))
        identity = replace(identity, groups=identity.groups & known)
        return await asyncio.to_thread(self._access.identities.sign_session, identity)

    def end(self, request: web.BaseRequest, now: float) -> str | None:
        """Ends the session of a request: copies of its cookie are worth nothing from then on. Returns the session's name; None if there is none."""
        session = self._access.identities.sessions.read(request.cookies.get(SESSION_COOKIE, ""))
        if session is None:
            return None
        self._ended.add(session.name, now)
        return session.name

    def _note(self, request: web.BaseRequest, identity: Identity, verdict: str, reason: str = "") -> None:
        metrics.access_decisions.labels("login", verdict).inc()
        if self._access.audit is not None:
            proof = identity.token or identity.subject or ""
            self._access.audit.note(identity.user or "", proof, request.remote or "", "login", "", "", "", "", verdict, reason)


def _name_of(identity: Identity) -> str:
    return identity.user or identity.token or identity.subject or "?"
