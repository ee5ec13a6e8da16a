"""A registry: what can be asked of it, over all of its endpoints.

Endpoints are tried in the order given. Blobs and manifests by digest may come from any, since they are verified; a tag's meaning comes from the first that
knows it. Whatever is asked, an answer begins, or an error is there, within the header timeout; a document is here whole within as long again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from yarl import URL

from mirror import metrics
from mirror.errors import (
    DigestInvalid,
    DigestMismatch,
    Invalid,
    ManifestUnknown,
    NameUnknown,
    RegistryUnknown,
    UpstreamInvalid,
)
from mirror.manifests import ACCEPT, ACCEPT_ANY, MAX_SIZE, MEDIA_TYPES, Descriptor, Manifest, media_type_of, payload_of
from mirror.names import Digest, Reference, Repository, Tag
from mirror.tasks import close_all
from mirror.upstream.blobs import Blob
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import with_failover
from mirror.upstream.health import EndpointHealth
from mirror.upstream.pages import Listing, read_pages
from mirror.upstream.receiver import Response
from mirror.upstream.transport import Connections, Timeouts, Transport, length_of, read_bounded, shown
from mirror.upstream.trust import trusting
from mirror.upstream.urls import same_origin

_T = TypeVar("_T")

_HOSTS = {"docker.io": "registry-1.docker.io"}
"""Of registries whose name is not their host's."""


_GONE = {"MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "NOT_FOUND", "TAG_EXPIRED", "TAG_INVALID"}
"""The specification's codes, Harbor's and Quay's, and what registries say of tags that cannot be."""
_NO_NAME = {"NAME_UNKNOWN", "NAME_INVALID"}
"""Codes that count at the registry's own endpoint alone: a mirror says so of every repository where it does not know the registry that ``ns`` names."""


class RegistrySettings(Protocol):
    """What is needed of a registry's settings (mirror/config/registries.py)."""

    @property
    def endpoints(self) -> tuple[str, ...]: ...
    @property
    def ca_file(self) -> Any: ...
    def credentials(self) -> tuple[str, str] | None: ...


class Registry:
    """One configured registry."""

    def __init__(self, name: str, settings: RegistrySettings, transport: Transport) -> None:
        self.name = name
        self._transport = transport
        tls = trusting(settings.ca_file) if settings.ca_file is not None else None
        urls = [URL(url) for url in settings.endpoints]
        # The credentials belong to the registry's own endpoint, where it is among them, and otherwise to the first: others are public mirrors as often as not.
        home = next((url for url in urls if is_own(name, url)), urls[0])
        self._endpoints = [
            Endpoint(
                name,
                str(url),
                transport,
                settings.credentials if same_origin(url, home) else None,
                tls,
                own=is_own(name, url),
                alone=len(urls) == 1,
            )
            for url in urls
        ]
        self._pulled_manifest = metrics.pulled_bytes.labels(name, "manifest")

    async def aclose(self) -> None:
        await close_all(*(endpoint.aclose for endpoint in self._endpoints))

    def health(self) -> list[EndpointHealth]:
        """One for each endpoint, in order."""
        return [endpoint.health for endpoint in self._endpoints]

    # ------------------------------------------------------------------ manifests

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor:
        """What a reference means. Asked with HEAD, which Docker Hub does not count as a pull. Raises ManifestUnknown, Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> Descriptor:
            trusted = endpoint.heads
            if trusted:
                url = endpoint.url(repository, f"manifests/{reference}")
                response = await endpoint.head(url, repository, {"Accept": ACCEPT}, deadline)
                if response is not None and (described := _descriptor(response, reference)) is not None:
                    return described
            manifest = await self._get(endpoint, repository, reference, deadline)
            if trusted:
                endpoint.distrust_heads()
            return manifest.descriptor

        return await self._ask(ask, repository, mutable=isinstance(reference, Tag))

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """A manifest, verified. Raises ManifestUnknown, Denied, UpstreamError."""
        return await self._ask(
            lambda endpoint, deadline: self._get(endpoint, repository, reference, deadline),
            repository,
            mutable=isinstance(reference, Tag),
        )

    async def _get(self, endpoint: Endpoint, repository: Repository, reference: Reference, deadline: float) -> Manifest:
        url = endpoint.url(repository, f"manifests/{reference}")
        accept = ACCEPT_ANY if isinstance(reference, Digest) else ACCEPT
        response = await endpoint.send("GET", url, repository, {"Accept": accept}, deadline)
        try:
            if response.status not in (200, 404):
                raise UpstreamInvalid(f"{shown(url)} answered {response.status}")
            body = await read_bounded(response, MAX_SIZE, self._time_for_body(endpoint, deadline))
            if response.status == 404:
                raise _no_manifest(endpoint, repository, reference, body)
        finally:
            response.release()
        self._pulled_manifest.inc(len(body))
        wanted = reference if isinstance(reference, Digest) else _digest(response)
        actual = Digest.of(body, wanted.algorithm if wanted is not None else "sha256")
        if wanted is not None and actual != wanted and (payload := payload_of(body)) is not None:
            actual = Digest.of(payload, wanted.algorithm)
        if wanted is not None and actual != wanted:
            metrics.verification_failures.labels(self.name).inc()
            raise DigestMismatch(f"{shown(url)} sent bytes with the digest {actual}, not {wanted}")
        return Manifest(media_type_of(body, response.headers.get("Content-Type"), verified=wanted is not None), actual, body)

    def _time_for_body(self, endpoint: Endpoint, deadline: float) -> float:
        """Seconds that a document may take once its headers are here; less where there is another endpoint to ask in time."""
        header = self._transport.timeouts.header
        return header if endpoint.alone else max(deadline - asyncio.get_running_loop().time(), header / 4)

    def blob(self, repository: Repository, digest: Digest) -> Blob:
        """A blob, to be asked for its size and its bytes."""
        return Blob(self.name, self._endpoints, self._transport, repository, digest)

    # ------------------------------------------------------------------ lists

    async def list_tags(self, repository: Repository) -> Listing:
        """All tags, over all pages. Raises NameUnknown, Denied, UpstreamError."""

        def tags(page: dict[str, Any]) -> list[Any]:
            return [tag for tag in _listed(page, "tags", "name") if _is_tag(tag)]

        async def ask(endpoint: Endpoint, deadline: float) -> Listing:
            return await self._pages(endpoint, repository, "tags/list", {}, deadline, tags)

        return await self._ask(ask, repository, mutable=True)

    async def list_referrers(self, repository: Repository, digest: Digest) -> Listing:
        """Descriptors of the manifests that refer to one. Where the registry has no referrers API, those of the referrers tag
        (distribution-spec 1.1, "Referrers Tag Schema"). Raises Denied, UpstreamError."""

        def manifests(page: dict[str, Any]) -> list[Any]:
            return [entry for entry in _listed(page, "manifests", "schemaVersion") if _is_descriptor(entry)]

        async def ask(endpoint: Endpoint, deadline: float) -> Listing:
            try:
                return await self._pages(endpoint, repository, f"referrers/{digest}", {"Accept": ACCEPT}, deadline, manifests)
            except (NameUnknown, UpstreamInvalid):
                # "<ref>: the digest", both parts with a limit on their length.
                index = await self._get(endpoint, repository, Tag(f"{digest.algorithm[:32]}-{digest.hex[:64]}"), deadline)
                return Listing(manifests(json.loads(index.body)), True)

        try:
            return await self._ask(ask, repository, mutable=True)
        except ManifestUnknown as error:
            if not error.certain:
                raise
            return Listing([], True)

    async def _pages(
        self,
        endpoint: Endpoint,
        repository: Repository,
        rest: str,
        headers: dict[str, str],
        deadline: float,
        entries: Callable[[dict[str, Any]], list[Any]],
    ) -> Listing:
        def unknown(body: bytes) -> NameUnknown:
            error = NameUnknown(f"{self.name} has no repository {repository.path}")
            error.certain = _is_gone(endpoint, body)
            return error

        url, seconds = endpoint.url(repository, rest), self._transport.timeouts.header
        return await read_pages(endpoint, repository, url, headers, deadline, seconds, entries, unknown)

    async def _ask(self, ask: Callable[[Endpoint, float], Awaitable[_T]], repository: Repository, *, mutable: bool) -> _T:
        return await with_failover(self.name, self._endpoints, self._transport.timeouts, ask, repository, mutable=mutable)


class Upstreams:
    """All configured registries."""

    def __init__(self, registries: Mapping[str, RegistrySettings], timeouts: Timeouts, connections: Connections) -> None:
        self._settings = registries
        self._timeouts = timeouts
        self._connections = connections
        self._registries: dict[str, Registry] = {}
        self._transport: Transport | None = None

    async def __aenter__(self) -> Upstreams:
        self._transport = Transport(self._timeouts, self._connections)
        self._registries = {name: Registry(name, settings, self._transport) for name, settings in self._settings.items()}
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None
        await close_all(*(registry.aclose for registry in self._registries.values()), self._transport.aclose)

    def registry(self, name: str) -> Registry:
        """Raises RegistryUnknown."""
        try:
            return self._registries[name]
        except KeyError:
            raise RegistryUnknown.named(name) from None


def is_own(registry: str, url: URL) -> bool:
    """True where a URL is the registry's own, by its name: a host, or a host and a port."""
    host = _HOSTS.get(registry, registry)
    return host in (url.host, f"{url.host}:{url.port}") or url.host == registry


def _descriptor(response: Response, reference: Reference) -> Descriptor | None:
    digest, size = _digest(response), length_of(response)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if "Content-Encoding" in response.headers:
        # The length would be that of the encoded document.
        return None
    if digest is None or not size or media_type not in MEDIA_TYPES or size > MAX_SIZE:
        return None
    if isinstance(reference, Digest) and digest != reference:
        return None
    return Descriptor(media_type, digest, size)


def _digest(response: Response) -> Digest | None:
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def _is_tag(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Tag.parse(value))
    except Invalid:
        return False


def _is_descriptor(value: Any) -> bool:
    """True for a descriptor (image-spec 1.1, "descriptor.md") that can be passed on: JSON may hold halves of characters, numbers that are none, and any depth."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return isinstance(value["mediaType"], str) and isinstance(value["size"], int) and bool(Digest.parse(value["digest"]))
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, DigestInvalid):
        return False


def _listed(page: dict[str, Any], key: str, beside: str) -> list[Any]:
    """What a page lists under `key`; nothing where it has null, or `beside` alone. Raises UpstreamInvalid for another document."""
    found = page.get(key)
    if isinstance(found, list):
        return found
    if found is None and (key in page or beside in page):
        return []
    raise UpstreamInvalid(f"upstream sent a document without {key} for a list")


def _no_manifest(endpoint: Endpoint, repository: Repository, reference: Reference, body: bytes) -> ManifestUnknown:
    error = ManifestUnknown(f"{repository.registry} has no manifest {reference} in {repository.path}")
    error.certain = _is_gone(endpoint, body)
    return error


def _is_gone(endpoint: Endpoint, body: bytes) -> bool:
    """True for an error body in which a registry says that something is not there (distribution-spec 1.1, "Error Codes").

    An ingress in front of one says 404 as well, while it restarts.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    errors = document.get("errors") if isinstance(document, dict) else None
    codes = [error.get("code") for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    said = _GONE | _NO_NAME if endpoint.own else _GONE
    return any(isinstance(code, str) and code.upper() in said for code in codes)
