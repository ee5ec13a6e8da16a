"""Docker Hub's search and its details of tags, or another service with the same two APIs.

Neither is part of the registry's API: they have URLs of their own, are asked anonymously, and fail without consequences for the registry's endpoints.
Nothing that such a service sends is trusted: what is not of the expected shape is left out.
"""

from __future__ import annotations

import json
import math
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from yarl import URL

from mirror.errors import (
    MirrorError,
    NameInvalid,
    Offline,
    TagInvalid,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.names import Repository, Tag
from mirror.upstream.guard import Guard
from mirror.upstream.health import Breaker
from mirror.upstream.proxies import Way
from mirror.upstream.receiver import Response
from mirror.upstream.redirects import follow
from mirror.upstream.transport import Transport, read_bounded, retry_after, shown

SEARCHED = 100
"""Results that are requested: the most that Docker Hub gives."""
_LARGEST = 4 * 1024 * 1024
"""Bytes of an answer."""
_SECONDS = 10.0
"""For a request, its answer included."""
_LONGEST_TEXT = 300
_MOST_PAGES = 3
"""Of tags, 100 each."""
_MOST_PLATFORMS = 50
_LARGEST_NUMBER = 2**53


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A repository that a search found. `description` is one line of printable characters."""

    repository: Repository
    description: str
    stars: int
    official: bool


@dataclass(frozen=True, slots=True)
class TagDetails:
    """What is known about a tag without its manifest. `size` is that of one platform's compressed image in bytes; None if unknown."""

    size: int | None
    platforms: tuple[str, ...]


class HubApi:
    """The search and the tag details of one registry. It stops asking for a while after failures."""

    def __init__(
        self,
        registry: str,
        search: str,
        tag_details: str,
        transport: Transport,
        tls: ssl.SSLContext | None,
        way: Way | None = None,
    ) -> None:
        """`search` and `tag_details` are the URLs of the two APIs; an empty one means that the registry has no such API."""
        self._registry = registry
        self._search = _Service(search, transport, tls, way) if search else None
        self._details = _Service(tag_details, transport, tls, way) if tag_details else None

    async def search(self, term: str) -> list[SearchResult] | None:
        """Returns at most `SEARCHED` results in the service's order; None if the registry has no search. Raises UpstreamError.

        The answer's format is that of Docker's ``GET /v1/search?q=…&n=…``.
        """
        if self._search is None:
            return None
        document = await self._search.get({"q": term, "n": str(SEARCHED)})
        found: dict[Repository, SearchResult] = {}
        for entry in _objects(document, "results")[:SEARCHED]:
            repository = _repository(self._registry, entry.get("name"))
            if repository is not None and repository not in found:
                stars, official = _count(entry.get("star_count")) or 0, entry.get("is_official") is True
                found[repository] = SearchResult(repository, _line(entry.get("description")), stars, official)
        return list(found.values())

    async def tag_details(self, repository: Repository, containing: str) -> dict[str, TagDetails] | None:
        """Returns details of the most recently changed tags whose names contain a string, up to 300; None if the registry tells none. Raises UpstreamError.

        The format is that of ``https://hub.docker.com/v2/repositories/NAMESPACE/NAME/tags``.
        """
        if self._details is None:
            return None
        found: dict[str, TagDetails] = {}
        for page in range(1, _MOST_PAGES + 1):
            query = {"page_size": "100", "page": str(page), **({"name": containing} if containing else {})}
            try:
                document = await self._details.get(query, f"/{repository.path}/tags")
            except MirrorError:
                if page == 1:
                    raise
                break
            for entry in _objects(document, "results"):
                name = entry.get("name")
                if isinstance(name, str) and _is_tag(name) and name not in found:
                    found[name] = _details_of(entry)
            if not isinstance(document.get("next"), str):
                break
        return found


class _Service:
    """GET requests to one base URL, with a circuit breaker."""

    def __init__(self, url: str, transport: Transport, tls: ssl.SSLContext | None, way: Way | None) -> None:
        self._base = URL(url)
        self._transport = transport
        self._guard = Guard(transport, self._base, tls, way)
        self._breaker = Breaker()

    async def get(self, query: dict[str, str], below: str = "") -> dict[str, Any]:
        """Returns the JSON object at a path below the base URL. Raises UpstreamError."""
        self._transport.check_online()
        breaker, where = self._breaker, shown(self._base)
        url = URL(f"{str(self._base).rstrip('/')}{below}?{urlencode(query)}", encoded=True)
        if not breaker.allows(url.raw_path_qs):
            raise UpstreamUnreachable(
                f"{where} is paused for {math.ceil(breaker.pause_left or 1)} s after failures: {breaker.last_error}"
            )
        try:
            document = await self._get(url)
        except UpstreamInvalid:
            breaker.succeeded()
            raise
        except Offline:
            # It says nothing of the service.
            raise
        except (UpstreamFailed, UpstreamTimeout) as error:
            # It may be the failure of this question alone.
            breaker.failed(error.message, url.raw_path_qs)
            raise
        except MirrorError as error:
            breaker.failed(error.message)
            raise
        breaker.succeeded()
        return document

    async def _get(self, url: URL) -> dict[str, Any]:
        via: list[URL] = []

        async def send(to: URL) -> Response:
            return await self._guard.request("GET", via, to, {"Accept": "application/json"}, _SECONDS)

        response = await follow(url, via, send)
        try:
            if response.status == 429:
                raise UpstreamLimited(f"{shown(url)} answered 429: too many requests", retry_after(response))
            if response.status >= 500 or response.status == 408:
                raise UpstreamFailed(f"{shown(url)} answered {response.status}")
            if response.status != 200:
                raise UpstreamInvalid(f"{shown(url)} answered {response.status}")
            body = await read_bounded(response, _LARGEST, _SECONDS)
        finally:
            response.release()
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise UpstreamInvalid(f"{shown(url)} sent something that is not a JSON object")
        return document


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Returns the objects of a list. Raises UpstreamInvalid if there is no list."""
    found = document.get(key)
    if not isinstance(found, list):
        raise UpstreamInvalid(f"the service's answer has no list of {key}")
    return [entry for entry in found if isinstance(entry, dict)]


def _repository(registry: str, name: Any) -> Repository | None:
    if not isinstance(name, str):
        return None
    path = f"library/{name}" if registry == "docker.io" and "/" not in name else name
    try:
        return Repository.parse(registry, path)
    except NameInvalid:
        return None


def _is_tag(name: str) -> bool:
    try:
        return bool(Tag.parse(name))
    except TagInvalid:
        return False


def _details_of(entry: dict[str, Any]) -> TagDetails:
    images = entry.get("images")
    platforms: list[str] = []
    for image in images if isinstance(images, list) else []:
        parts = [image.get(key) for key in ("os", "architecture", "variant")] if isinstance(image, dict) else []
        words = [part for part in parts if isinstance(part, str) and part.isascii() and part.isalnum() and len(part) < 20]
        if len(words) > 1 and "unknown" not in words and (name := "/".join(words)) not in platforms:
            platforms.append(name)
    return TagDetails(_count(entry.get("full_size")), tuple(platforms[:_MOST_PLATFORMS]))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_NUMBER else None


def _line(text: Any) -> str:
    """Returns a text as one bounded line, without control and invisible characters, which could rearrange a terminal or a page."""
    if not isinstance(text, str):
        return ""
    line = " ".join("".join(character if character.isprintable() else " " for character in text[: 4 * _LONGEST_TEXT]).split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"
