"""The context of a page: language, theme, the mirror's address as the client knows it, and the session of an admin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from aiohttp import web

from mirror.api.browser_logins import LOGGED_IN
from mirror.api.targets import Target
from mirror.clients import Address
from mirror.names import Repository
from mirror.web.admin import Admin
from mirror.web.translations import LANGUAGES, TAGS, preferred

THEMES = ("auto", "light", "dark")
LANGUAGE_COOKIE, THEME_COOKIE = "mirror_language", "mirror_theme"


@dataclass(frozen=True, slots=True)
class PageContext:
    """The context of one request."""

    language: str
    theme: str
    address: Address | None
    """The mirror's address as the client names it; None if it cannot be written into a configuration."""
    session: str | None
    form_secret: str
    path: str
    query: Mapping[str, str]
    user: str = ""
    """Who has logged in, if that was not with the admin token."""
    may_see: Callable[[Repository], bool] | None = None
    """Which repositories may be named; None for all."""

    @property
    def tag(self) -> str:
        return TAGS[self.language]

    @property
    def host(self) -> str:
        """What stands before an image's name to pull it from here, with its slash."""
        return f"{self.address.authority}/" if self.address is not None else ""

    def here(self, **changes: object) -> str:
        """A link to this page with another query; None takes a key away."""
        query = {key: value for key, value in {**self.query, **changes}.items() if value not in (None, "")}
        path = quote("/" + self.path.lstrip("/"), safe="/:@")
        return f"{path}?{urlencode(query)}" if query else path


def page_number(query: Mapping[str, str]) -> int:
    """Returns the page of a list that a query asks for, 1 if it names none."""
    wanted = query.get("page", "")
    return max(1, int(wanted)) if wanted.isascii() and wanted.isdigit() and len(wanted) < 8 else 1


def recognise(request: web.BaseRequest, target: Target, admin: Admin) -> PageContext:
    cookies = request.cookies
    language = cookies.get(LANGUAGE_COOKIE)
    theme = cookies.get(THEME_COOKIE, "")
    session, user = admin.session_of(request), request.get(LOGGED_IN)
    return PageContext(
        language if language in LANGUAGES else preferred(request.headers.get("Accept-Language", "")),
        theme if theme in THEMES else THEMES[0],
        _address(request),
        session,
        admin.form_secret(session) if session is not None else "",
        target.path,
        target.query,
        user.name if user is not None else "",
        user.may_see if user is not None and admin.session(request) is None else None,
    )


def _address(request: web.BaseRequest) -> Address | None:
    # The host is the one that this request names. X-Forwarded-Proto can be forged, but a forger would only get a wrong scheme himself.
    host = request.headers.get("Host", "")
    secure = request.secure or request.headers.get("X-Forwarded-Proto", "").strip().lower() == "https"
    try:
        address = Address.parse(f"{'https' if secure else 'http'}://{host}")
    except ValueError:
        return None
    return address if address.authority == host.lower() else None
