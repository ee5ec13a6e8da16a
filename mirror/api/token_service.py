"""The token service of the registry's token flow (distribution's documentation, "Token Authentication Specification" and "OAuth2 Token Authentication").

A client that was challenged sends the user and the password here, and gets a bearer token. Without them it gets one that says that nobody has logged in, with which
it may pull what anyone may.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from aiohttp import web

from mirror.access.bearer import parse_scopes
from mirror.api.context import RequestContext
from mirror.api.gate import Gate
from mirror.errors import RequestInvalid, Unsupported

_LARGEST_FORM = 16 * 1024
_FORM_TIMEOUT = 10.0
"""Seconds for a form to arrive."""


async def issue_token(context: RequestContext, gate: Gate) -> web.Response:
    """Answers GET, and POST with a form whose grant_type is password. Raises LoginNeeded, LoginWrong, RequestInvalid, TooManyGuesses, Unsupported, UpstreamError."""
    request, target = context.request, context.target
    assert target is not None
    if request.method in ("GET", "HEAD"):
        scopes = [value for key, value in parse_qsl(request.raw_path.partition("?")[2]) if key == "scope"]
        await gate.identify(context, target)
    elif request.method == "POST":
        form = await _form(request)
        if form.get("grant_type") != "password":
            raise RequestInvalid("grant_type is expected to be password: there are no refresh tokens here")
        scopes = [form.get("scope", "")]
        await gate.identify_password(context, form.get("username", ""), form.get("password", ""))
    else:
        raise Unsupported(f"{request.method} is not supported here", "GET, HEAD, POST")
    granted = parse_scopes(scopes)
    if not granted:
        # `docker login` asks for nothing, but wants to know whether the password is right.
        await gate.check_login(context)
    token, life = await gate.sign(context, granted)
    issued = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {"token": token, "access_token": token, "expires_in": life, "issued_at": issued, "token_type": "Bearer"}
    return web.Response(body=json.dumps(body).encode(), headers={"Content-Type": "application/json", "Cache-Control": "no-store"})


async def _form(request: web.BaseRequest) -> dict[str, str]:
    """Reads a form. Raises RequestInvalid."""
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_TIMEOUT):
            while len(body) <= _LARGEST_FORM and (data := await request.content.readany()):
                body += data
        if len(body) > _LARGEST_FORM:
            raise RequestInvalid(f"a form of at most {_LARGEST_FORM} bytes is expected")
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except (ValueError, TimeoutError):
        raise RequestInvalid("a form is expected, URL-encoded") from None
