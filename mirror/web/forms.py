"""Forms that browsers and programs send."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import parse_qsl

from aiohttp import web

from mirror.api.request_body import continue_
from mirror.errors import RequestInvalid
from mirror.web.actions import MOST

_LARGEST = 16 * 1024
_TIMEOUT = 10.0
"""Seconds for a form to arrive."""


async def read_form(request: web.BaseRequest) -> dict[str, str]:
    """Reads a form. Of a field that occurs several times, the last one counts. Raises RequestInvalid."""
    return dict(await read_fields(request))


async def read_fields(request: web.BaseRequest) -> list[tuple[str, str]]:
    """Reads the fields of a form, or of a JSON object, in which a list stands for several fields of one name. Raises RequestInvalid."""
    body = bytearray()
    continue_(request)
    try:
        async with asyncio.timeout(_TIMEOUT):
            while len(body) <= _LARGEST and (data := await request.content.readany()):
                body += data
        if len(body) > _LARGEST:
            raise RequestInvalid(f"a form of at most {_LARGEST} bytes is expected")
        if request.content_type == "application/json":
            found = json.loads(body)
            pairs = found.items() if isinstance(found, dict) else ()
            several = [(key, one) for key, value in pairs for one in (value if isinstance(value, list) else [value])]
            return [(key, value) for key, value in several if isinstance(value, str)]
        return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST + 10)
    except (ValueError, RecursionError, TimeoutError):
        raise RequestInvalid("a form is expected, URL-encoded") from None
