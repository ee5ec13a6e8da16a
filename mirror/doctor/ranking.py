"""Measures every endpoint of a registry that has several, by what a pull needs: name, TCP, TLS, a manifest with its token, and 4 MB of a layer."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from yarl import URL

from mirror.config import Endpoint, Registry
from mirror.doctor.findings import Finding, advice, ok
from mirror.doctor.waiting import within
from mirror.errors import MirrorError, UpstreamInvalid
from mirror.manifests import Manifest
from mirror.names import Digest, Repository, Tag
from mirror.units import format_size
from mirror.upstream import Connections, Timeouts, Upstreams
from mirror.upstream.proxies import Way
from mirror.upstream.registry import Registry as Source
from mirror.upstream.registry import endpoint_way, registry_way
from mirror.upstream.trust import trusting

IMAGES = {
    "docker.io": ("library/debian", "stable-slim"),
    "ghcr.io": ("linuxserver/baseimage-alpine", "latest"),
    "quay.io": ("prometheus/busybox", "latest"),
    "registry.k8s.io": ("pause", "3.9"),
    "gcr.io": ("distroless/base", "latest"),
    "mcr.microsoft.com": ("dotnet/runtime-deps", "latest"),
    "public.ecr.aws": ("docker/library/alpine", "latest"),
}
"""An image that each registry is sure to have."""
_TIMEOUTS = Timeouts(connect=3, header=8, stall=5, attempts=1)
_ENOUGH = 4_000_000
_PATIENCE = 11.0
"""Seconds for all of one endpoint, of which the last part may be cut short."""
_LEVELS = 3
"""Indexes that lead to a manifest, at most."""


@dataclass
class _Measured:
    endpoint: Endpoint
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds of each step that was done."""
    rate: float = 0.0
    """Bytes of the layer per second."""
    fault: str = ""

    @property
    def seconds(self) -> float:
        """What a pull of a layer of 4 MB takes."""
        return sum(self.steps.values()) + (_ENOUGH / self.rate if self.rate else 0.0)


async def rank(name: str, registry: Registry, way: Way) -> list[Finding]:
    """Returns a finding for each endpoint, the fastest first, then those that cannot be pulled from. Empty for a registry with one endpoint, or without a known image."""
    if len(registry.endpoints) < 2 or name not in IMAGES:
        return []
    measured = await asyncio.gather(*(_measure(name, registry, endpoint, way) for endpoint in registry.endpoints))
    found = []
    for place, one in enumerate(sorted(measured, key=lambda one: (bool(one.fault), one.seconds)), 1):
        steps = ", ".join(f"{step} {seconds * 1000:.0f} ms" for step, seconds in one.steps.items())
        if one.fault:
            message = f"not usable: {one.endpoint}: {one.fault}{f' (after {steps})' if steps else ''}"
            found.append(advice(name, message, "the mirror asks it last; remove it from endpoints if it stays like this"))
        else:
            found.append(ok(name, f"{place}. {one.endpoint}: {steps}, layer {format_size(one.rate)}/s"))
    return found


async def _measure(name: str, registry: Registry, endpoint: Endpoint, way: Way) -> _Measured:
    measured = _Measured(endpoint)
    try:
        async with asyncio.timeout(_PATIENCE):
            if endpoint_way(name, endpoint, registry_way(name, registry, way)).of(URL(endpoint.url)) is None:
                await _connect(registry, URL(endpoint.url), measured)
            await _pull(name, registry, endpoint, way, measured)
    except TimeoutError:
        measured.fault = "it takes too long"
    except MirrorError as error:
        measured.fault = error.message
    except (OSError, UnicodeError) as error:
        measured.fault = f"no connection: {getattr(error, 'strerror', None) or error}"
    return measured


async def _connect(registry: Registry, url: URL, measured: _Measured) -> None:
    """Measures name resolution, TCP and TLS. Raises OSError, TimeoutError."""
    host, port = url.raw_host or "", url.port or 443
    async with _timed(measured, "name"):
        addresses = await within(_TIMEOUTS.connect, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    async with asyncio.timeout(_TIMEOUTS.connect), _timed(measured, "TCP"):
        _, writer = await asyncio.open_connection(str(addresses[0][4][0]), port)
    try:
        if url.scheme == "https":
            async with asyncio.timeout(_TIMEOUTS.connect), _timed(measured, "TLS"):
                await writer.start_tls(trusting(registry.ca_file), server_hostname=host)
    except ssl.SSLError as error:
        raise OSError(f"TLS: {error.reason or error}") from None
    finally:
        writer.close()


async def _pull(name: str, registry: Registry, endpoint: Endpoint, way: Way, measured: _Measured) -> None:
    """Measures a manifest and the first bytes of its largest layer, requested as the mirror does. Raises MirrorError."""
    path, tag = IMAGES[name]
    repository = Repository.parse(name, path)
    alone = registry.model_copy(update={"endpoints": (endpoint,)})
    async with Upstreams({name: alone}, _TIMEOUTS, Connections(1, 1, 1), way=way) as upstreams:
        source = upstreams.registry(name)
        async with _timed(measured, "manifest"):
            manifest = await source.get_manifest(repository, Tag(tag))
        digest = await _largest_layer(source, repository, manifest)
        began, size = time.monotonic(), 0
        stream = await source.blob(repository, digest).open()
        try:
            while size < _ENOUGH and (data := await stream.read()):
                size += len(data)
        finally:
            await stream.aclose()
        measured.rate = size / max(time.monotonic() - began, 1e-6)


async def _largest_layer(source: Source, repository: Repository, manifest: Manifest) -> Digest:
    for _ in range(_LEVELS):
        try:
            document = json.loads(manifest.body)
            if "layers" in document:
                return Digest.parse(max(document["layers"], key=lambda layer: layer["size"])["digest"])
            child = Digest.parse(document["manifests"][0]["digest"])
        except (ValueError, KeyError, TypeError, IndexError):
            break
        manifest = await source.get_manifest(repository, child)
    raise UpstreamInvalid(f"{repository} has no image that can be measured")


@asynccontextmanager
async def _timed(measured: _Measured, step: str) -> AsyncIterator[None]:
    began = time.monotonic()
    yield
    measured.steps[step] = time.monotonic() - began
