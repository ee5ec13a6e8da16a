"""What answers have in common: headers, OCI error bodies, Cache-Status."""

from __future__ import annotations

import json
import math
from typing import Any

from aiohttp import web

from mirror.cache.outcome import Outcome
from mirror.errors import (
    AdminNeeded,
    BlobUnknown,
    ClientBusy,
    Denied,
    ManifestUnknown,
    MirrorError,
    NameUnknown,
    RangeNotSatisfiable,
    TooManyGuesses,
    Unsupported,
    UpstreamError,
    UpstreamLimited,
)
from mirror.names import Digest

VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")
IMMUTABLE = "public, max-age=31536000, immutable"
_RETRY_AFTER = 5
_OF_UPSTREAM = (UpstreamError, ManifestUnknown, BlobUnknown, NameUnknown, Denied)
"""Errors that are what upstream said, or that it said nothing."""


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


def json_response(
    document: Any, outcome: Outcome | None, content_type: str = "application/json", headers: dict[str, str] | None = None
) -> web.Response:
    """A document made here, with no outcome where the cache has no part in it. `content_type` has no parameters: registries send none."""
    answer = web.Response(
        body=json.dumps(document, ensure_ascii=False).encode(), headers={"Content-Type": content_type, **(headers or {})}
    )
    answer.headers[VERSION[0]] = VERSION[1]
    if outcome is not None:
        answer.headers["Cache-Status"] = cache_status(outcome)
    return answer


def error_response(error: MirrorError) -> web.Response:
    """An error as the OCI distribution-spec 1.1 ("Error Codes") has it."""
    headers = {
        "Content-Type": "application/json",
        VERSION[0]: VERSION[1],
        "Cache-Status": f"mirror; fwd={'miss' if isinstance(error, _OF_UPSTREAM) else 'bypass'}; detail={error.code}",
        "X-Content-Type-Options": "nosniff",
    }
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    elif isinstance(error, Unsupported):
        headers["Allow"] = error.allow
    elif isinstance(error, UpstreamLimited):
        headers["Retry-After"] = str(math.ceil(error.retry_after or _RETRY_AFTER))
    elif isinstance(error, TooManyGuesses):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif isinstance(error, AdminNeeded):
        headers["WWW-Authenticate"] = 'Bearer realm="the mirror\'s admin token"'
    elif isinstance(error, UpstreamError | ClientBusy):
        headers["Retry-After"] = str(_RETRY_AFTER)
    body = {"errors": [{"code": error.code, "message": error.message, "detail": None}]}
    return web.Response(status=error.status, body=json.dumps(body, ensure_ascii=False).encode(), headers=headers)
