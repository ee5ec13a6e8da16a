"""A registry: what can be asked of it, over all of its endpoints.

Endpoints are tried in the order given. Blobs and manifests by digest may come from any, since they are verified; a tag's meaning comes from the first that
answers. Whatever is asked, an answer or an error is there within the header timeout.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import aiohttp
from yarl import URL

from mirror import metrics
from mirror.errors import (
    BlobUnknown,
    Denied,
    DigestInvalid,
    DigestMismatch,
    Invalid,
    ManifestUnknown,
    MirrorError,
    NameUnknown,
    RegistryUnknown,
    Unknown,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.manifests import ACCEPT, MAX_SIZE, Descriptor, Manifest, media_type_of
from mirror.names import Digest, Reference, Repository, Tag
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.health import EndpointHealth
from mirror.upstream.streams import BlobStream
from mirror.upstream.targets import same_origin
from mirror.upstream.tokens import Authenticator
from mirror.upstream.transport import Timeouts, Transport, read_bounded, shown

_T = TypeVar("_T")

_LARGEST_LIST = 32 * 1024 * 1024
_MOST_PAGES = 200
_LINK = re.compile(r'<([^>]*)>\s*;[^,]*\brel\s*=\s*"?next"?')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_SOON = 3.0
"""Seconds of Retry-After that are waited for while a client waits."""


class RegistrySettings(Protocol):
    """What is needed of a registry's settings (mirror/config.py)."""

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
        self._authenticator = Authenticator(name, settings.credentials)
        tls = ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file is not None else None
        self._endpoints = [Endpoint(name, url, transport, self._authenticator, tls) for url in settings.endpoints]
        self._pulled_blob = metrics.pulled_bytes.labels(name, "blob")
        self._pulled_manifest = metrics.pulled_bytes.labels(name, "manifest")

    async def aclose(self) -> None:
        await self._authenticator.aclose()

    def health(self) -> list[EndpointHealth]:
        """One for each endpoint, in order."""
        return [endpoint.health for endpoint in self._endpoints]

    # ------------------------------------------------------------------ manifests

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor:
        """What a reference means. Asked with HEAD, which Docker Hub does not count as a pull. Raises ManifestUnknown, Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> Descriptor:
            url = endpoint.url(repository, f"manifests/{reference}")
            response = await endpoint.send("HEAD", url, repository, {"Accept": ACCEPT}, deadline)
            response.release()
            if response.status == 404:
                raise _no_manifest(repository, reference)
            described = _descriptor(response, reference) if response.status == 200 else None
            if described is None:
                # 405, or a registry that says too little in its HEAD.
                return (await self._get(endpoint, repository, reference, deadline)).descriptor
            return described

        return await self._ask(ask, isinstance(reference, Tag))

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """A manifest, verified. Raises ManifestUnknown, Denied, UpstreamError."""
        return await self._ask(
            lambda endpoint, deadline: self._get(endpoint, repository, reference, deadline), isinstance(reference, Tag)
        )

    async def _get(self, endpoint: Endpoint, repository: Repository, reference: Reference, deadline: float) -> Manifest:
        url = endpoint.url(repository, f"manifests/{reference}")
        response = await endpoint.send("GET", url, repository, {"Accept": ACCEPT}, deadline)
        try:
            if response.status == 404:
                raise _no_manifest(repository, reference)
            if response.status != 200:
                raise UpstreamInvalid(f"{shown(url)} answered {response.status}")
            body = await read_bounded(response, MAX_SIZE, self._transport.timeouts.stall)
        finally:
            response.release()
        self._pulled_manifest.inc(len(body))
        wanted = reference if isinstance(reference, Digest) else _digest(response)
        actual = Digest.of(body, wanted.algorithm if wanted is not None else "sha256")
        if wanted is not None and actual != wanted:
            metrics.verification_failures.labels(self.name).inc()
            raise DigestMismatch(f"{shown(url)} sent bytes with the digest {actual}, not {wanted}")
        return Manifest(media_type_of(body, response.headers.get("Content-Type")), actual, body)

    # ------------------------------------------------------------------ blobs

    async def head_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """The size of a blob. Raises BlobUnknown, Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> Descriptor:
            url = endpoint.url(repository, f"blobs/{digest}")
            response = await endpoint.send("HEAD", url, repository, {}, deadline, digest)
            response.release()
            if response.status == 404:
                raise _no_blob(repository, digest)
            size = _length(response)
            if response.status != 200 or size is None:
                # Some stores refuse HEAD, or do not say the length in it.
                stream = await self._open(endpoint, repository, digest, 0, 1, deadline)
                await stream.aclose()
                size = stream.size
            if size is None:
                raise UpstreamInvalid(f"{shown(url)} does not say how long the blob is")
            return Descriptor("application/octet-stream", digest, size)

        return await self._ask(ask, False)

    async def open_blob(self, repository: Repository, digest: Digest, start: int = 0, stop: int | None = None) -> BlobStream:
        """Begins to fetch ``[start, stop)`` of a blob; all of it is asked for without a Range. Raises BlobUnknown, Denied, UpstreamError."""
        return await self._ask(lambda endpoint, deadline: self._open(endpoint, repository, digest, start, stop, deadline), False)

    async def _open(
        self, endpoint: Endpoint, repository: Repository, digest: Digest, start: int, stop: int | None, deadline: float
    ) -> BlobStream:
        url = endpoint.url(repository, f"blobs/{digest}")
        headers = {}
        if start > 0 or stop is not None:
            # Closed where possible: some registries answer 416 to an open one.
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        response = await endpoint.send("GET", url, repository, headers, deadline, digest)
        try:
            if response.status == 404:
                raise _no_blob(repository, digest)
            if response.status == 200:
                size, first = _length(response), 0
            elif response.status == 206 and headers:
                size, first = _content_range(response, start, stop)
            else:
                raise UpstreamInvalid(f"{shown(url)} answered {response.status} to a request for a blob")
        except MirrorError:
            response.close()
            raise
        return BlobStream(response, size, first, self._transport.timeouts.stall, self._pulled_blob)

    # ------------------------------------------------------------------ lists

    async def list_tags(self, repository: Repository) -> list[str]:
        """All tags, over all pages. Raises NameUnknown, Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> list[str]:
            found: list[str] = []
            first = endpoint.url(repository, "tags/list")
            unknown = NameUnknown(f"{self.name} has no repository {repository.path}")
            for page in await self._pages(endpoint, repository, first, {}, deadline, unknown):
                tags = page.get("tags")
                found += [tag for tag in (tags if isinstance(tags, list) else ()) if _is_tag(tag)]
            return found

        return await self._ask(ask, True)

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[dict[str, Any]]:
        """Descriptors of the manifests that refer to one. Where the registry has no referrers API, those of the referrers tag
        (distribution-spec 1.1, "Referrers Tag Schema"). Raises Denied, UpstreamError."""

        async def ask(endpoint: Endpoint, deadline: float) -> list[dict[str, Any]]:
            first = endpoint.url(repository, f"referrers/{digest}")
            try:
                pages = await self._pages(endpoint, repository, first, {"Accept": ACCEPT}, deadline, BlobUnknown(""))
            except (BlobUnknown, UpstreamInvalid):
                try:
                    index = await self._get(endpoint, repository, Tag(f"{digest.algorithm}-{digest.hex}"), deadline)
                except ManifestUnknown:
                    return []
                pages = [json.loads(index.body)]
            found: list[dict[str, Any]] = []
            for page in pages:
                manifests = page.get("manifests")
                found += [entry for entry in (manifests if isinstance(manifests, list) else ()) if isinstance(entry, dict)]
            return found

        return await self._ask(ask, True)

    async def _pages(
        self, endpoint: Endpoint, repository: Repository, url: URL, headers: dict[str, str], deadline: float, unknown: Unknown
    ) -> list[dict[str, Any]]:
        pages = []
        for _ in range(_MOST_PAGES):
            response = await endpoint.send("GET", url, repository, headers, deadline)
            try:
                if response.status == 404:
                    raise unknown
                if response.status != 200:
                    raise UpstreamInvalid(f"{shown(url)} answered {response.status}")
                body = await read_bounded(response, _LARGEST_LIST, self._transport.timeouts.stall)
            finally:
                response.release()
            try:
                page = json.loads(body)
            except (ValueError, RecursionError):
                page = None
            if not isinstance(page, dict):
                raise UpstreamInvalid(f"{shown(url)} sent something that is not a JSON object")
            pages.append(page)
            link = _LINK.search(response.headers.get("Link", ""))
            if link is None:
                return pages
            try:
                url = url.join(URL(link[1], encoded=True))
            except ValueError:
                raise UpstreamInvalid(f"{shown(url)} links to a next page that is no URL") from None
            if not same_origin(url, endpoint.base):
                raise UpstreamInvalid(f"{shown(url)}: the next page is on another host")
        return pages

    # ------------------------------------------------------------------ over all endpoints

    async def _ask(self, ask: Callable[[Endpoint, float], Awaitable[_T]], first_answer: bool) -> _T:
        """Asks the endpoints in turn until one has it; `first_answer` takes the first one's no for an answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._transport.timeouts.header
        left = [endpoint for endpoint in self._endpoints if endpoint.breaker.allows()]
        if not left:
            raise UpstreamUnreachable(
                f"{self.name} is left alone for a while after failures: {self._endpoints[0].breaker.last_error}"
            )
        errors: list[MirrorError] = []
        for attempt in range(self._transport.timeouts.attempts):
            for endpoint in list(left):
                try:
                    answer = await ask(endpoint, deadline)
                except (UpstreamUnreachable, UpstreamTimeout) as error:
                    endpoint.breaker.failed(error.message)
                    errors.append(error)
                    if isinstance(error, UpstreamTimeout) or not endpoint.breaker.allows():
                        left.remove(endpoint)
                except UpstreamLimited as error:
                    errors.append(error)
                    if error.retry_after is None or error.retry_after > _SOON:
                        left.remove(endpoint)
                except (Unknown, Denied, UpstreamInvalid, Invalid) as error:
                    if not isinstance(error, UpstreamInvalid):
                        endpoint.breaker.succeeded()
                        if first_answer:
                            raise
                    errors.append(error)
                    left.remove(endpoint)
                else:
                    endpoint.breaker.succeeded()
                    return answer
            wait = _pause(attempt, errors[-1])
            if not left or loop.time() + wait >= deadline or attempt + 1 == self._transport.timeouts.attempts:
                break
            await asyncio.sleep(wait)
        raise min(errors, key=_weight)


def _pause(attempt: int, error: MirrorError) -> float:
    if isinstance(error, UpstreamLimited) and error.retry_after is not None:
        return error.retry_after
    return random.uniform(0.05, 0.2 * 2**attempt)


def _weight(error: MirrorError) -> int:
    """Which of several endpoints' errors is told: a 404 is an answer, the others are the lack of one."""
    for weight, kind in enumerate((Unknown, Denied, UpstreamLimited, UpstreamInvalid)):
        if isinstance(error, kind):
            return weight
    return 9


class Upstreams:
    """All configured registries."""

    def __init__(self, registries: Mapping[str, RegistrySettings], timeouts: Timeouts) -> None:
        self._settings = registries
        self._timeouts = timeouts
        self._registries: dict[str, Registry] = {}
        self._transport: Transport | None = None

    async def __aenter__(self) -> Upstreams:
        self._transport = Transport(self._timeouts)
        self._registries = {name: Registry(name, settings, self._transport) for name, settings in self._settings.items()}
        return self

    async def __aexit__(self, *_: object) -> None:
        for registry in self._registries.values():
            await registry.aclose()
        assert self._transport is not None
        await self._transport.aclose()

    def registry(self, name: str) -> Registry:
        """Raises RegistryUnknown."""
        try:
            return self._registries[name]
        except KeyError:
            raise RegistryUnknown(f"this mirror does not serve {name}") from None


def _descriptor(response: aiohttp.ClientResponse, reference: Reference) -> Descriptor | None:
    digest, size = _digest(response), _length(response)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if digest is None or size is None or not media_type or size > MAX_SIZE:
        return None
    if isinstance(reference, Digest) and digest != reference:
        return None
    return Descriptor(media_type, digest, size)


def _digest(response: aiohttp.ClientResponse) -> Digest | None:
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def _length(response: aiohttp.ClientResponse) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() else None


def _content_range(response: aiohttp.ClientResponse, start: int, stop: int | None) -> tuple[int | None, int]:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start or (stop is not None and int(match[2]) >= stop):
        raise UpstreamInvalid(f"{shown(response.url)} answered with another range than was asked for")
    return None if match[3] == "*" else int(match[3]), start


def _is_tag(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Tag.parse(value))
    except Invalid:
        return False


def _no_manifest(repository: Repository, reference: Reference) -> ManifestUnknown:
    return ManifestUnknown(f"{repository.registry} has no manifest {reference} in {repository.path}")


def _no_blob(repository: Repository, digest: Digest) -> BlobUnknown:
    return BlobUnknown(f"{repository.registry} has no blob {digest} in {repository.path}")
