"""The way to an issuer and back: ``/oidc/NAME`` leads there, and the issuer back to ``/oidc/NAME/done``."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from mirror.access.oidc_login import LASTS
from mirror.access.sessions import LASTS as SESSION_LASTS
from mirror.api.browser_logins import SESSION_COOKIE, BrowserLogins
from mirror.clients import Address
from mirror.errors import RequestInvalid, RouteUnknown

_COOKIE = "mirror_oidc"


async def by_issuer(
    request: web.BaseRequest,
    rest: str,
    query: Mapping[str, str],
    logins: BrowserLogins,
    address: Address | None,
    to: str,
    headers: Mapping[str, str],
) -> web.Response:
    """Answers below ``/oidc/``. The cookies are Lax, not Strict: the browser comes from the issuer's site. Raises LoginWrong, RequestInvalid, RouteUnknown,
    TooManyGuesses."""
    name, _, end = rest.partition("/")
    if address is None:
        raise RequestInvalid("the Host header is not an address that an issuer could lead back to")
    if not logins.offered or end not in ("", "done"):
        raise RouteUnknown("there is no issuer of that name to log in by")
    secure = address.url.startswith("https://")
    path = f"/oidc/{name}"
    if not end:
        begun = await logins.begin_by(name, f"{address.url}{path}/done", to)
        response = web.Response(status=303, headers={**headers, "Location": begun.url, "Cache-Control": "no-store"})
        response.set_cookie(_COOKIE, begun.cookie, max_age=LASTS, path=path, httponly=True, samesite="Lax", secure=secure)
        return response
    session, to = await logins.end_by(request, name, request.cookies.get(_COOKIE, ""), dict(query))
    response = web.Response(status=303, headers={**headers, "Location": to, "Cache-Control": "no-store"})
    response.set_cookie(SESSION_COOKIE, session, max_age=SESSION_LASTS, path="/", httponly=True, samesite="Lax", secure=secure)
    response.set_cookie(_COOKIE, "", max_age=0, path=path, httponly=True, samesite="Lax", secure=secure)
    return response
