"""The answer of /readyz: what is degraded, as the worker that has asked each endpoint last knows it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirror import certificate, durable
from mirror.config import Settings
from mirror.disk_probe import DiskProbe
from mirror.regular_files import read_file
from mirror.upstream import Upstreams
from mirror.upstream.places import looped
from mirror.workers.context import WorkerContext

Endpoints = dict[str, list[dict[str, Any]]]
"""The endpoints of each registry, in the order of the settings."""

_LARGEST_FILE = 1024 * 1024
_EXPIRES_SOON = 7 * 86400
"""Seconds before its expiry from which a certificate is reported."""
_STATES = {
    "failing": "has failed, and is still used",
    "wrong": "is used last for blobs, because it sent wrong bytes",
}


class Readiness:
    """What this process knows, merged with what the other workers have published."""

    def __init__(
        self,
        settings: Settings,
        upstreams: Upstreams,
        worker: WorkerContext | None,
        probe: DiskProbe,
        notes: Sequence[str] = (),
    ) -> None:
        """`notes` are sentences about the start, which stay in the report."""
        self._notes = notes
        self._probe = probe
        self._settings = settings
        self._upstreams = upstreams
        self._file = worker.folder / f"endpoints-{worker.number}.json" if worker is not None else None

    def publish(self) -> None:
        """Publishes what this process knows for the other workers. Errors of the disk are ignored."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                durable.replace(self._file, json.dumps(self._own()).encode())

    def report(self, with_errors: bool = True) -> dict[str, Any]:
        """Returns a JSON object: ``mirror`` has the mirror's own faults in sentences, ``degraded`` these and the endpoints', ``registries`` each endpoint's state;
        ``offline`` is whether no registry is asked. The errors of endpoints may name images, and are left out unless `with_errors`."""
        faults = list(self._notes)
        if fault := self._probe.fault:
            faults.append(fault)
        if (end := self._certificate_end()) is not None and end - time.time() < _EXPIRES_SOON:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
            faults.append(f"the mirror's own certificate {self._settings.server.tls_certificate} expires on {when}: renew it")
        views = [self._own()]
        if self._file is not None:
            views += [view for path in self._file.parent.glob("endpoints-*.json") if (view := _read(path)) is not None]
        degraded = list(faults)
        registries: Endpoints = {}
        for name in dict.fromkeys(name for view in views for name in view):
            # A worker learns of an endpoint's state when it asks it: the one that asked last knows.
            known = [view[name] for view in views if name in view]
            # For a moment after SIGHUP the workers have different endpoints.
            known = [endpoints for endpoints in known if _urls(endpoints) == _urls(known[0])]
            latest = [max((endpoints[place] for endpoints in known), key=_heard) for place in range(len(known[0]))]
            if not with_errors:
                latest = [{**endpoint, "last_error": None} for endpoint in latest]
            registries[name] = latest
            for endpoint in latest:
                if endpoint["state"] != "ok" and not self._upstreams.offline:
                    error = f": {endpoint['last_error']}" if with_errors else ""
                    degraded.append(f"{name}: {endpoint['endpoint']} {_state(endpoint)}{error}")
        if self._upstreams.fleet is not None and not self._upstreams.offline:
            dead = [place.name for place in self._upstreams.fleet.all if not place.alive]
            degraded += [
                f"the mirror {name} does not answer: the next one, or the registry, is asked in its place" for name in dead
            ]
            degraded += [looped(place.name) for place in self._upstreams.fleet.all if place.loops]
            if (bucket := self._upstreams.fleet.bucket) is not None and bucket.fault:
                degraded.append(bucket.fault)
        return {"degraded": degraded, "mirror": faults, "registries": registries, "offline": self._upstreams.offline}

    def _certificate_end(self) -> float | None:
        file = self._settings.server.tls_certificate
        return None if file is None else certificate.ends(file)

    def _own(self) -> Endpoints:
        return {
            name: [
                {
                    "endpoint": endpoint.url,
                    "state": endpoint.state,
                    "last_error": endpoint.last_error,
                    "last_heard_of": endpoint.heard or None,
                    "seconds_to_first_byte": endpoint.latency,
                    "bytes_per_second": endpoint.throughput,
                    "asked_again": endpoint.asked_again,
                    "pulls": endpoint.pulls,
                    "pulls_left": endpoint.pulls_left,
                }
                for endpoint in self._upstreams.registry(name).health()
            ]
            for name in self._upstreams.in_use()
        }


def _state(endpoint: dict[str, Any]) -> str:
    if endpoint["state"] != "down":
        return _STATES[endpoint["state"]]
    seconds = math.ceil((endpoint["asked_again"] or 0.0) - time.time())
    return f"is paused for {seconds} s after failures" if seconds > 0 else "is down, and is asked again by the next request"


def _urls(endpoints: list[dict[str, Any]]) -> list[str]:
    return [endpoint["endpoint"] for endpoint in endpoints]


def _heard(endpoint: dict[str, Any]) -> float:
    return float(endpoint["last_heard_of"] or 0.0)


def _read(path: Path) -> Endpoints | None:
    try:
        view: Endpoints = json.loads(read_file(path, _LARGEST_FILE))
    except (OSError, ValueError):
        return None
    return view
