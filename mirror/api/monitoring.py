"""What is not part of the registry's API: health and metrics."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from mirror import metrics


def healthz() -> web.Response:
    """The process is alive: that it answers is all there is to say."""
    return _page(b'{"status":"alive"}', "application/json")


def readyz(report: dict[str, Any]) -> web.Response:
    """It can serve; and what of it is degraded.

    An upstream that is down does not make it unready: what is cached is served, and a balancer that took the mirror out would fail those pulls too.
    """
    status = "degraded" if report["degraded"] else "ready"
    return _page(json.dumps({"status": status, **report}, indent=1).encode(), "application/json")


def measurements() -> web.Response:
    return _page(metrics.page(), CONTENT_TYPE_LATEST)


def _page(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
