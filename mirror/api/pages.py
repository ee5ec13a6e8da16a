"""What is not part of the registry's API: health and metrics."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mirror import metrics


def healthz() -> web.Response:
    """The process is alive: that it answers is all there is to say."""
    return web.Response(body=b'{"status":"alive"}', headers={"Content-Type": "application/json", "Cache-Control": "no-store"})


def readyz(draining: bool, report: dict[str, Any]) -> web.Response:
    """Whether it can serve, and what of it is degraded.

    An upstream that is down does not make it unready: what is cached is served, and a balancer that took the mirror out would fail those pulls too.
    """
    status = "draining" if draining else "degraded" if report["degraded"] else "ready"
    body = json.dumps({"status": status, **report}, indent=1).encode()
    return web.Response(
        status=503 if draining else 200, body=body, headers={"Content-Type": "application/json", "Cache-Control": "no-store"}
    )


def measurements() -> web.Response:
    return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})
