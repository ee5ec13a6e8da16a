"""A registry: requests for manifests, blobs and lists, with failover between its endpoints.

Endpoints are tried in order. Blobs and manifests by digest may come from any, since they are verified; a tag comes from the first that knows it, or with
``tags = "newest"`` from a comparison of all. Headers come within the header timeout, and a whole document within twice that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from yarl import URL

from mirror import metrics
from mirror.client_login import acting_for
from mirror.errors import ManifestUnknown, NameUnknown, UpstreamError, UpstreamInvalid
from mirror.manifests import ACCEPT, ACCEPT_ANY, MAX_SIZE, Descriptor, Manifest
from mirror.names import Digest, Reference, Repository, Tag
from mirror.tasks import close_all
from mirror.upstream.blobs import Blob
from mirror.upstream.client_checks import ClientChecks
from mirror.upstream.documents import described, verified
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.failover import Unfinished, with_endpoint, with_failover
from mirror.upstream.first_answers import FirstAnswers
from mirror.upstream.fleet import Fleet
from mirror.upstream.health import EndpointHealth
from mirror.upstream.pages import Listing, is_descriptor, is_tag, listed, read_pages
from mirror.upstream.placed import PlacedBlob
from mirror.upstream.search import HubApi, SearchResult, TagDetails
from mirror.upstream.settings import RegistrySettings, endpoint_way, registry_way
from mirror.upstream.survey import Surveys, TagAnswers
from mirror.upstream.transport import Transport, read_bounded, shown
from mirror.upstream.trust import trusting
from mirror.upstream.urls import gets_credentials, is_own

_T = TypeVar("_T")

_GONE = {"MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "NOT_FOUND", "TAG_EXPIRED", "TAG_INVALID"}
"""Error codes for absent content: of the distribution-spec, of Harbor and Quay, and for tags with an invalid name."""
_NO_NAME = {"NAME_UNKNOWN", "NAME_INVALID"}
"""Codes that count only from the registry's own endpoint: a mirror sends them for any repository if it does not know the registry in ``ns``."""


class Registry:
    """One configured registry."""

    def __init__(self, name: str, settings: RegistrySettings, transport: Transport, fleet: Fleet | None = None) -> None:
        """`fleet` has the mirrors that are asked first."""
        self.name = name
        # Other mirrors get no client's password, so they can have nothing that is for one client and not for all.
        self._fleet = None if settings.credentials == "client" else fleet
        self._transport = transport
        self._unfinished = Unfinished()
        self._has_clients = settings.credentials == "client"
        tls = trusting(settings.ca_file) if settings.ca_file is not None else None
        urls = [URL(endpoint.url) for endpoint in settings.endpoints]
        out = registry_way(name, settings, transport.way)
        self._endpoints = [
            Endpoint(
                name,
                str(url),
                transport,
                settings.account if gets_credentials(name, url, urls) else None,
                tls,
                own=is_own(name, url),
                only=len(urls) == 1,
                path=endpoint.path,
                proxy=endpoint.proxy,
                way=endpoint_way(name, endpoint, out),
                clients=self._has_clients and gets_credentials(name, url, urls),
            )
            for endpoint, url in zip(settings.endpoints, urls, strict=True)
        ]
        asked = next(one for one, url in zip(self._endpoints, urls, strict=True) if gets_credentials(name, url, urls))
        self.clients = ClientChecks(name, asked, transport.timeouts, self._unfinished)
        self._surveys = Surveys(name, self._endpoints, transport.timeouts, self._unfinished)
        self._first_answers = FirstAnswers(name, self._endpoints, transport.timeouts, self._unfinished)
        self.compares_tags = settings.tags == "newest" and len(urls) > 1
        """True if the newest of all endpoints' tags counts, not the first answer."""
        self._hub_api = HubApi(name, settings.search or "", settings.tag_details or "", transport, tls, out)
        self._pulled_manifest = metrics.pulled_bytes.labels(name, "manifest")

    async def aclose(self) -> None:
        await close_all(self._unfinished.aclose, *(endpoint.aclose for endpoint in self._endpoints))

    def health(self) -> list[EndpointHealth]:
        """Returns the health of each endpoint, in order."""
        return [endpoint.health for endpoint in self._endpoints]

    # ------------------------------------------------------------------ manifests

    def asks_peer(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether another mirror of the fleet is asked first, so that nobody may wait for the answer whom such a mirror asks."""
        return self._fleet is not None and self._fleet.asks_peer(repository, reference)

    def asks_mirror(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether another mirror, or the bucket, may be asked first, which has what it has for other repositories too."""
        return self._fleet is not None and self._fleet.asks_mirror(repository, reference)

    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor:
        """Returns what a reference points to, by HEAD, which Docker Hub does not count as a pull. Raises ManifestUnknown, Denied, UpstreamError."""
        if self._fleet is not None and (found := await self._fleet.head_manifest(repository, reference)) is not None:
            return found
        return await self._ask(
            lambda endpoint, deadline: self._head(endpoint, repository, reference, deadline),
            repository,
            mutable=isinstance(reference, Tag),
        )

    async def tag_answers(
        self, repository: Repository, tag: Tag, known: Digest | None, is_older: Callable[[Digest], Awaitable[bool]]
    ) -> TagAnswers:
        """Returns what a tag means by HEAD: what all endpoints say if `compares_tags`, otherwise the first answer that does not turn it back from `known`.

        `is_older` says whether a manifest was made before that. Raises as `head_manifest` does.
        """

        def ask(endpoint: Endpoint, deadline: float) -> Awaitable[Descriptor]:
            return self._head(endpoint, repository, tag, deadline)

        said = None
        if self._fleet is not None:
            said = await self._fleet.head_manifest(repository, tag)
            if said is None and known is None:
                said = await self._fleet.kept_image(repository, tag)
        if said is not None:
            return TagAnswers((said,), True, True)
        try:
            if self.compares_tags:
                found = await self._surveys.ask(ask, repository)
            else:
                found = TagAnswers((await self._first_answers.ask(ask, repository, tag, known, is_older),), True, True)
            await self._note_fetched(repository, tag)
            return found
        except UpstreamError:
            # What is known already is not older than what the bucket knows.
            if (
                self._fleet is None
                or known is not None
                or (said := await self._fleet.kept_tag(repository, tag, fresh=False)) is None
            ):
                raise
            return TagAnswers((said,), True, True)

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """Returns a verified manifest. Raises ManifestUnknown, Denied, UpstreamError."""
        if self._fleet is not None and (found := await self._fleet.get_manifest(repository, reference)) is not None:
            return dataclasses.replace(found, told=isinstance(reference, Tag))
        if isinstance(reference, Tag) and (kept := await self._kept(repository, reference, fresh=True)) is not None:
            return kept
        try:
            return await self._get_of_registry(repository, reference)
        except UpstreamError:
            if isinstance(reference, Digest) or (kept := await self._kept(repository, reference, fresh=False)) is None:
                raise
            return kept

    async def _kept(self, repository: Repository, tag: Tag, *, fresh: bool) -> Manifest | None:
        """Returns the manifest that a tag meant as the bucket knows, see `Fleet.kept_tag`; None if it is not to be had without the registry."""
        if self._fleet is None or (found := await self._fleet.kept_tag(repository, tag, fresh=fresh)) is None:
            return None
        with contextlib.suppress(ManifestUnknown):
            if (manifest := await self._fleet.get_manifest(repository, found.digest)) is not None:
                return dataclasses.replace(manifest, endpoint=found.endpoint, age=found.age)
        return None

    async def _get_of_registry(self, repository: Repository, reference: Reference) -> Manifest:
        endpoint, manifest = await self._ask(
            with_endpoint(lambda endpoint, deadline: self._get(endpoint, repository, reference, deadline)),
            repository,
            mutable=isinstance(reference, Tag),
            endpoints=self._surveys.ranked(reference) if isinstance(reference, Digest) else None,
        )
        if isinstance(reference, Tag):
            self._first_answers.note(repository, reference, manifest.digest, endpoint)
        await self._note_fetched(repository, reference, manifest.digest)
        self._surveys.note_children(manifest)
        return manifest

    async def get_tag(
        self, repository: Repository, tag: Tag, known: Digest, is_older: Callable[[Digest], Awaitable[bool]]
    ) -> Manifest:
        """Returns a verified manifest by a tag for which an endpoint names one that it does not give: the first that does not turn the tag back from `known`,
        though it may be that one. Raises as `get_manifest` does."""

        def ask(endpoint: Endpoint, deadline: float) -> Awaitable[Manifest]:
            return self._get(endpoint, repository, tag, deadline)

        manifest = await self._first_answers.ask(ask, repository, tag, known, is_older, newer_named=True)
        await self._note_fetched(repository, tag, manifest.digest)
        self._surveys.note_children(manifest)
        return manifest

    async def _note_fetched(self, repository: Repository, *references: Reference) -> None:
        if self._fleet is not None:
            await self._fleet.note_fetched(repository, *references)

    async def _head(self, endpoint: Endpoint, repository: Repository, reference: Reference, deadline: float) -> Descriptor:
        trusted = endpoint.heads
        if trusted:
            url = endpoint.url(repository, f"manifests/{reference}")
            response = await endpoint.head(url, repository, {"Accept": ACCEPT}, deadline)
            if response is not None and (found := described(response, reference, endpoint.name)) is not None:
                return found
        manifest = await self._get(endpoint, repository, reference, deadline)
        if trusted:
            endpoint.distrust_heads()
        return manifest.descriptor

    async def _get(self, endpoint: Endpoint, repository: Repository, reference: Reference, deadline: float) -> Manifest:
        url = endpoint.url(repository, f"manifests/{reference}")
        accept = ACCEPT_ANY if isinstance(reference, Digest) else ACCEPT
        response = await endpoint.send("GET", url, repository, {"Accept": accept}, deadline)
        try:
            if response.status not in (200, 404):
                raise UpstreamInvalid(f"{shown(url)} answered {response.status}")
            body = await read_bounded(response, MAX_SIZE, self._time_for_body(endpoint, deadline))
            if response.status == 404:
                error = _no_manifest(endpoint, repository, reference, body)
                # Some registries say so too of what is not for whoever asks.
                error.certain = error.certain and not (self._has_clients and acting_for() is None)
                raise error
        finally:
            response.release()
        self._pulled_manifest.inc(len(body))
        return verified(response, body, reference, endpoint.name, self.name)

    def _time_for_body(self, endpoint: Endpoint, deadline: float) -> float:
        """Returns the seconds that the body of a document may take; fewer if there is another endpoint to ask."""
        header = self._transport.timeouts.header
        return header if endpoint.only else max(deadline - asyncio.get_running_loop().time(), header / 4)

    def blob(self, repository: Repository, digest: Digest) -> Blob | PlacedBlob:
        """Returns a blob, whose size and bytes can be requested. Requests nothing yet."""
        blob = Blob(self.name, self._endpoints, self._transport, repository, digest, self._unfinished)
        if self._fleet is None or (not (places := self._fleet.places(repository, digest)) and self._fleet.bucket is None):
            return blob
        return PlacedBlob(places, blob, self._transport, repository, digest, self._fleet)

    # ------------------------------------------------------------------ lists

    async def list_tags(self, repository: Repository) -> Listing:
        """Returns all tags, from all pages. Raises NameUnknown, Denied, UpstreamError."""

        def tags(page: dict[str, Any]) -> list[Any]:
            return [tag for tag in listed(page, "tags", "name") if is_tag(tag)]

        async def ask(endpoint: Endpoint, deadline: float) -> Listing:
            return await self._pages(endpoint, repository, "tags/list", {}, deadline, tags)

        return await self._ask(ask, repository, mutable=True, lists=True)

    async def list_referrers(self, repository: Repository, digest: Digest) -> Listing:
        """Returns the descriptors of a manifest's referrers; from the referrers tag if the registry has no referrers API
        (distribution-spec 1.1, "Referrers Tag Schema"). Raises Denied, UpstreamError."""

        def manifests(page: dict[str, Any]) -> list[Any]:
            return [entry for entry in listed(page, "manifests", "schemaVersion") if is_descriptor(entry)]

        async def ask(endpoint: Endpoint, deadline: float) -> Listing:
            try:
                return await self._pages(endpoint, repository, f"referrers/{digest}", {"Accept": ACCEPT}, deadline, manifests)
            except (NameUnknown, UpstreamInvalid):
                # The referrers tag has at most 32 characters of the algorithm and 64 of the digest.
                index = await self._get(endpoint, repository, Tag(f"{digest.algorithm[:32]}-{digest.hex[:64]}"), deadline)
                return Listing(manifests(json.loads(index.body)), True)

        try:
            return await self._ask(ask, repository, mutable=True, lists=True)
        except ManifestUnknown as error:
            if not error.certain:
                raise
            return Listing([], True)

    async def search(self, term: str) -> list[SearchResult] | None:
        """See `HubApi.search`."""
        return await self._hub_api.search(term)

    async def tag_details(self, repository: Repository, containing: str) -> dict[str, TagDetails] | None:
        """See `HubApi.tag_details`."""
        return await self._hub_api.tag_details(repository, containing)

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

    async def _ask(
        self,
        ask: Callable[[Endpoint, float], Awaitable[_T]],
        repository: Repository,
        *,
        mutable: bool,
        lists: bool = False,
        endpoints: Sequence[Endpoint] | None = None,
    ) -> _T:
        asked, timeouts, kept = endpoints or self._endpoints, self._transport.timeouts, self._unfinished
        return await with_failover(self.name, asked, timeouts, ask, repository, unfinished=kept, mutable=mutable, lists=lists)


def _no_manifest(endpoint: Endpoint, repository: Repository, reference: Reference, body: bytes) -> ManifestUnknown:
    error = ManifestUnknown(f"{repository.registry} has no manifest {reference} in {repository.path}")
    error.certain = _is_gone(endpoint, body)
    return error


def _is_gone(endpoint: Endpoint, body: bytes) -> bool:
    """Returns whether the body of a 404 is the registry's own error for absent content (distribution-spec 1.1, "Error Codes").

    An ingress in front of a registry answers 404 too, while the registry restarts.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    errors = document.get("errors") if isinstance(document, dict) else None
    codes = [error.get("code") for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    absent = _GONE | _NO_NAME if endpoint.own else _GONE
    return any(isinstance(code, str) and code.upper() in absent for code in codes)
