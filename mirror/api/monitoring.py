"""Health and metrics."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from mirror import metrics


def healthz() -> web.Response:
    """Says that the process answers requests."""
    return _uncached(b'{"status":"alive"}', "application/json")


def readyz(report: dict[str, Any]) -> web.Response:
    """Says that the mirror can serve, and what is degraded.

    An upstream that is down does not make it unready: cached content is served, and without the mirror those pulls would fail too.
    """
    status = "degraded" if report["degraded"] else "ready"
    return _uncached(json.dumps({"status": status, **report}, indent=1).encode(), "application/json")


def measurements() -> web.Response:
    return _uncached(metrics.exposition(), CONTENT_TYPE_LATEST)


def _uncached(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
