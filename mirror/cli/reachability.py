"""Checks at the start whether upstreams can be reached, for people at a terminal, who would otherwise learn it from their first pull."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from yarl import URL

from mirror.config import Registry, Settings
from mirror.upstream.proxies import Way
from mirror.upstream.settings import endpoint_way, registry_way, upstream_way

_PATIENCE = 3.0


def warning(settings: Settings) -> str:
    """Returns a sentence about the registries without an endpoint that accepts a connection within 3 s, and what to try; empty if there are none. Blocks."""
    try:
        everywhere = upstream_way(settings.upstream)
        ways = {name: registry_way(name, registry, everywhere) for name, registry in settings.registries.items()}
    except OSError:
        # The start fails for the same reason, and says so.
        return ""
    with ThreadPoolExecutor(len(settings.registries)) as pool:
        faults = pool.map(lambda item: _fault(item[0], item[1], ways[item[0]]), settings.registries.items())
        found = {name: fault for name, fault in zip(settings.registries, faults, strict=True) if fault}
    if not found:
        return ""
    which = "no registry" if len(found) == len(settings.registries) else ", ".join(found)
    negation = "can be reached" if which == "no registry" else "cannot be reached"
    return (
        f"{which} {negation} now ({next(iter(found.values()))}); what is cached is served. "
        "Behind a proxy, set upstream.proxy or HTTPS_PROXY; where a registry is blocked, name an endpoint that is not: --upstream docker.io=URL. More: mirror doctor"
    )


def _fault(name: str, registry: Registry, way: Way) -> str:
    fault = ""
    for endpoint in registry.endpoints:
        url = URL(endpoint.url)
        if endpoint_way(name, endpoint, way).of(url) is not None:
            return ""
        try:
            socket.create_connection((url.raw_host or "", url.port or 443), _PATIENCE).close()
            return ""
        except (OSError, UnicodeError) as error:
            fault = f"{url.host}: {getattr(error, 'strerror', None) or error}"
    return fault
