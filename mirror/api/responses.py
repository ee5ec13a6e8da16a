"""Parts that responses have in common: headers, OCI error bodies, Cache-Status."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from mirror.cache.guarding import Guarded, verdict_header
from mirror.cache.outcome import Outcome
from mirror.errors import (
    AdminNeeded,
    BlobUnknown,
    ClientBusy,
    Denied,
    LimitReached,
    LoginNeeded,
    ManifestUnknown,
    MirrorError,
    NameUnknown,
    Offline,
    RangeNotSatisfiable,
    Unknown,
    Unsupported,
    UpstreamError,
    UpstreamLimited,
)
from mirror.names import Digest

VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")
IMMUTABLE = "public, max-age=31536000, immutable"
PRIVATE = "private, max-age=31536000, immutable"
"""Only the client's own cache may keep it (RFC 9111, section 5.2.2.7)."""
_RETRY_AFTER = 5
_OF_UPSTREAM = (UpstreamError, ManifestUnknown, BlobUnknown, NameUnknown, Denied)
"""Errors of upstream, or what it said."""


def cache_status(outcome: Outcome) -> str:
    """The Cache-Status member of this cache (RFC 9211, section 2)."""
    members = ["mirror", f"fwd={outcome.forward}" if outcome.forward else "hit"]
    if outcome.stored:
        members.append("stored")
    if outcome.collapsed:
        members.append("collapsed")
    if outcome.detail:
        members.append(f"detail={outcome.detail}")
    return "; ".join(members)


def etag(digest: Digest) -> str:
    return f'"{digest}"'


def base_response() -> web.Response:
    """The answer to ``/v2/``: 200 for anyone. A 401 makes dockerd send the user's Hub credentials, then bypass the mirror."""
    return web.Response(body=b"{}", headers={"Content-Type": "application/json", VERSION[0]: VERSION[1]})


def list_response(body: bytes, outcome: Outcome, content_type: str, headers: Mapping[str, str]) -> web.Response:
    """A list as JSON. `content_type` has no parameters: registries send none."""
    fixed = {"Content-Type": content_type, VERSION[0]: VERSION[1], "Cache-Status": cache_status(outcome)}
    return web.Response(body=body, headers={**fixed, **headers})


def error_response(error: MirrorError) -> web.Response:
    """An error as the OCI distribution-spec 1.1 ("Error Codes") has it."""
    # Who asks may be a mirror too, which must not take a doubtful 404 for a registry's word.
    code = error.code if not isinstance(error, Unknown) or error.certain else MirrorError.code
    headers = {
        "Content-Type": "application/json",
        VERSION[0]: VERSION[1],
        "Cache-Status": f"mirror; fwd={'miss' if isinstance(error, _OF_UPSTREAM) else 'bypass'}; detail={code}",
        "X-Content-Type-Options": "nosniff",
    }
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    elif isinstance(error, Guarded):
        headers["Mirror-Guard"] = verdict_header(error.rule, "refused", error.reason)
    elif isinstance(error, Unsupported):
        headers["Allow"] = error.allow
    elif isinstance(error, UpstreamLimited):
        headers["Retry-After"] = str(math.ceil(error.retry_after or _RETRY_AFTER))
    elif isinstance(error, LimitReached):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif isinstance(error, LoginNeeded):
        headers["WWW-Authenticate"] = error.challenge
    elif isinstance(error, AdminNeeded):
        headers["WWW-Authenticate"] = 'Bearer realm="the mirror\'s admin token"'
    elif isinstance(error, UpstreamError | ClientBusy) and not isinstance(error, Offline):
        headers["Retry-After"] = str(_RETRY_AFTER)
    body = {"errors": [{"code": code, "message": error.message, "detail": None}]}
    return web.Response(
        status=error.status, body=json.dumps(body, ensure_ascii=False).encode(errors="backslashreplace"), headers=headers
    )


def raw_response(error: MirrorError) -> bytes:
    """`error_response` as bytes, for a connection that is closed after it."""
    response = error_response(error)
    body = response.body
    assert isinstance(body, bytes)
    lines = [f"{name}: {value}" for name, value in response.headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *lines, "Connection: close"])
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
