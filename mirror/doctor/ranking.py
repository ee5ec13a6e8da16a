"""Measures every endpoint of a registry that has several, by what a pull needs: name, TCP, TLS, token, manifest, and 4 MB of a layer."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from mirror.config import Endpoint, Registry
from mirror.doctor.findings import Finding, advice, ok, problem
from mirror.doctor.waiting import within
from mirror.errors import CatalogFailed, Denied, MirrorError, RegionBlocked, Unknown, UpstreamTimeout
from mirror.manifests import Manifest, blobs_of, entries_of
from mirror.names import Digest, Reference, Repository, Tag, image_name
from mirror.storage.cache_directory import holds_cache, read_inventory
from mirror.units import format_size
from mirror.upstream import Connections, Timeouts, Upstreams
from mirror.upstream.proxies import Way
from mirror.upstream.registry import Registry as Source
from mirror.upstream.settings import endpoint_way, registry_way
from mirror.upstream.trust import trusting
from mirror.upstream.urls import gets_credentials

_KNOWN = {
    "docker.io": ("library/debian", "stable-slim"),
    "ghcr.io": ("linuxserver/baseimage-alpine", "latest"),
    "quay.io": ("prometheus/busybox", "latest"),
    "registry.k8s.io": ("pause", "3.9"),
    "gcr.io": ("distroless/base", "latest"),
    "mcr.microsoft.com": ("dotnet/runtime-deps", "latest"),
    "public.ecr.aws": ("docker/library/alpine", "latest"),
}
"""An image that each registry is sure to have, for a cache that has none of it."""
_TIMEOUTS = Timeouts(connect=3, header=8, stall=5, attempts=1)
_ENOUGH = 4_000_000
_PATIENCE = 11.0
"""Seconds for all of one endpoint but the layer."""
_LAYER_PATIENCE = 3.0
"""Seconds for the layer, of which the last bytes may be left out."""
_LEVELS = 3
"""Indexes that lead to a manifest, at most."""
_ELSEWHERE = re.compile(r"\.foreign\.|\.nondistributable\.")
_CATALOG_PATIENCE = 5.0
_MOST_RECENT = 50
"""Cached images among which one to measure with is looked for."""

Image = tuple[Repository, Reference]


@dataclass
class Measured:
    """What was measured of an endpoint."""

    endpoint: Endpoint
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds of each step that was done."""
    rate: float = 0.0
    """Bytes of the layer per second."""
    fault: MirrorError | None = None

    @property
    def lacks_image(self) -> bool:
        """True if it answers, but does not have the image, or does not give it out."""
        return isinstance(self.fault, Unknown | Denied) and not isinstance(self.fault, RegionBlocked)

    @property
    def seconds(self) -> float:
        """What a pull of a layer of 4 MB takes."""
        return sum(self.steps.values()) + (_ENOUGH / self.rate if self.rate else 0.0)

    @property
    def is_usable(self) -> bool:
        """True if it has the image."""
        return self.fault is None


async def image_of(name: str, cache: Path) -> Image | None:
    """Returns the image to measure a registry's endpoints with: the cached tag of it that was pulled last and is large enough, else a known one; None if there is none."""
    try:
        cached = await within(_CATALOG_PATIENCE, _cached_images, name, cache)
    except (CatalogFailed, OSError, TimeoutError):
        # The disk's findings say why.
        cached = []
    if cached:
        return next((image for image, size in cached if size >= _ENOUGH), cached[0][0])
    if name in _KNOWN:
        path, tag = _KNOWN[name]
        return Repository.parse(name, path), Tag(tag)
    return None


def _cached_images(name: str, cache: Path) -> list[tuple[Image, int]]:
    """Returns the tags of a registry that were pulled last, and how much of each is cached. Raises CatalogFailed, OSError."""
    if not holds_cache(cache):
        return []
    with read_inventory(cache) as inventory:
        page = inventory.images(f"{name}/", "pulled", 0, _MOST_RECENT)
    return [
        ((image.repository, image.reference), image.size)
        for image in page.entries
        if image.repository.registry == name and isinstance(image.reference, Tag) and image.platforms
    ]


async def measure(name: str, registry: Registry, image: Image, way: Way, line: asyncio.Lock) -> list[Measured]:
    """Measures a registry's endpoints with an image. `line` is held while a layer is received, so that no two measurements share the line."""
    return list(await asyncio.gather(*(_measure(name, registry, one, image, way, line) for one in registry.endpoints)))


def ranking(name: str, image: Image, measured: Sequence[Measured], dead: Sequence[Endpoint]) -> list[Finding]:
    """Returns a finding for each endpoint: the fastest first, those that lack the image, and those that cannot be pulled from, except the `dead` ones, which have findings already."""
    shown = image_name(*image)
    found = []
    works = any(one.is_usable or one.lacks_image for one in measured)
    for place, one in enumerate(sorted(measured, key=lambda one: (not one.is_usable, not one.lacks_image, one.seconds)), 1):
        steps = ", ".join(f"{step} {seconds * 1000:.0f} ms" for step, seconds in one.steps.items())
        if one.fault is None:
            layer = f", layer {format_size(one.rate)}/s" if one.rate else ""
            found.append(ok(name, f"{place}. {one.endpoint}: {steps}{layer} ({shown})"))
        elif one.endpoint in dead:
            continue
        elif isinstance(one.fault, Unknown):
            found.append(ok(name, f"{one.endpoint} works, does not have {shown}"))
        elif one.lacks_image:
            cure = "the other endpoints are asked for what this one refuses; remove it from endpoints if it refuses all that you need"
            found.append(advice(name, f"{one.endpoint} works, does not give out {shown}: {one.fault.message}", cure))
        else:
            message = f"not usable: {one.endpoint}: {one.fault.message}{f' (after {steps})' if steps else ''}"
            cure = "the mirror asks it last; remove it from endpoints if it stays like this"
            found.append(advice(name, message, cure) if works else problem(name, message, "set another endpoint, or a proxy"))
    return found


async def _measure(name: str, registry: Registry, endpoint: Endpoint, image: Image, way: Way, line: asyncio.Lock) -> Measured:
    measured = Measured(endpoint)
    alone = registry.model_copy(update={"endpoints": (endpoint,)})
    if not gets_credentials(name, URL(endpoint.url), [URL(one.url) for one in registry.endpoints]):
        alone = alone.model_copy(update={"username": None, "password": None, "password_file": None})
    repository, reference = image
    try:
        async with Upstreams({name: alone}, _TIMEOUTS, Connections(1, 1, 1), way=way) as upstreams:
            source = upstreams.registry(name)
            async with asyncio.timeout(_PATIENCE):
                if endpoint_way(name, endpoint, registry_way(name, registry, way)).of(URL(endpoint.url)) is None:
                    await _connect(registry, URL(endpoint.url), measured)
                began = time.monotonic()
                manifest = await source.get_manifest(repository, reference)
                seconds = time.monotonic() - began
                token = source.health()[0].token_latency
                if token is not None:
                    measured.steps["token"] = token
                measured.steps["manifest"] = max(seconds - (token or 0.0), 0.0)
                layer = await _largest_layer(source, repository, manifest)
            if layer is not None:
                async with line:
                    await _receive(source, repository, layer, measured)
    except TimeoutError:
        measured.fault = UpstreamTimeout("it takes too long")
    except MirrorError as error:
        measured.fault = error
    except (OSError, UnicodeError) as error:
        measured.fault = UpstreamTimeout(f"no connection: {getattr(error, 'strerror', None) or error}")
    return measured


async def _connect(registry: Registry, url: URL, measured: Measured) -> None:
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


async def _receive(source: Source, repository: Repository, layer: Digest, measured: Measured) -> None:
    """Measures the first bytes of a layer. Raises MirrorError, or TimeoutError if none came."""
    began, size = time.monotonic(), 0
    try:
        async with asyncio.timeout(_LAYER_PATIENCE):
            stream = await source.blob(repository, layer).open()
            try:
                while size < _ENOUGH and (data := await stream.read()):
                    size += len(data)
            finally:
                await stream.aclose()
    except TimeoutError:
        if not size:
            raise
    measured.rate = size / max(time.monotonic() - began, 1e-6)


async def _largest_layer(source: Source, repository: Repository, manifest: Manifest) -> Digest | None:
    """Returns the largest layer of an image, of an index's first one for a platform; None if it has none. Raises MirrorError."""
    for _ in range(_LEVELS):
        entries = entries_of(manifest.body)
        if not entries:
            break
        child = next((entry for entry in entries if entry.platform is not None), entries[0])
        manifest = await source.get_manifest(repository, child.descriptor.digest)
    # Registries need not have those of Windows (image-spec 1.1, "Non-Distributable Layers").
    layers = [layer for layer in blobs_of(manifest.body)[1] if not _ELSEWHERE.search(layer.media_type)]
    return max(layers, key=lambda layer: layer.size).digest if layers else None


@asynccontextmanager
async def _timed(measured: Measured, step: str) -> AsyncIterator[None]:
    began = time.monotonic()
    yield
    measured.steps[step] = time.monotonic() - began
