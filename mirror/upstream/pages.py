"""Reads lists in pages, which are linked by ``Link: <…>; rel="next"`` (distribution-spec 1.1, "Listing Tags"; RFC 8288)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yarl import URL

from mirror.errors import DigestInvalid, Invalid, MirrorError, Unknown, UpstreamInvalid
from mirror.names import Digest, Repository, Tag
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.receiver import Response
from mirror.upstream.transport import read_bounded, shown
from mirror.upstream.urls import parse_url

log = logging.getLogger(__name__)

_LARGEST = 32 * 1024 * 1024
"""Bytes of all pages of a list."""
_MOST = 4000
"""Pages of a list. Quay has 50 entries on a page; GHCR sends up to a thousand pages."""
_LINK = re.compile(r'<([^<>]*)>((?:[^<"]|"[^"<]*")*)')
_PARAMETER = re.compile(r""";\s*([\w*-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^;,"']*))""")
"""Both patterns match in linear time, since a header may be 64 KiB long."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A list from a registry. It is not `complete` if a page failed, or if it exceeds the limits."""

    entries: list[Any]
    complete: bool


async def read_pages(
    endpoint: Endpoint,
    repository: Repository,
    url: URL,
    headers: dict[str, str],
    deadline: float,
    seconds: float,
    entries: Callable[[dict[str, Any]], list[Any]],
    unknown: Callable[[bytes], Unknown],
) -> Listing:
    """Reads all pages from `url` on. `entries` returns those of a page, or raises UpstreamInvalid; `unknown` makes the error for the body of a 404.

    If the first page fails, it raises Unknown, Denied or UpstreamError. If a later page fails, it returns the entries before. Each page may take `seconds`.
    """
    found: list[Any] = []
    left, seen, first = _LARGEST, {url}, url
    while True:
        try:
            page, size, link, said_by = await _page(endpoint, repository, url, headers, deadline, seconds, left, unknown)
            found += (added := entries(page))
        except MirrorError as error:
            if len(seen) == 1:
                raise
            log.warning("a list of %s ends early, at page %d: %s", repository, len(seen), error.message)
            return Listing(found, False)
        left -= size
        if link is None:
            return Listing(found, True)
        try:
            url = _next(endpoint, first, link, said_by)
        except UpstreamInvalid as error:
            log.warning("a list of %s ends early: %s", repository, error.message)
            return Listing(found, False)
        if url in seen and not added:
            # At some registries the last page links to an empty one, which links to itself.
            return Listing(found, True)
        if url in seen or len(seen) >= _MOST or left <= 0:
            log.warning(
                "a list of %s is cut short: it has more than %d pages or %d bytes, or its links form a loop",
                repository,
                _MOST,
                _LARGEST,
            )
            return Listing(found, False)
        seen.add(url)
        deadline = asyncio.get_running_loop().time() + seconds


async def _page(
    endpoint: Endpoint,
    repository: Repository,
    url: URL,
    headers: dict[str, str],
    deadline: float,
    seconds: float,
    left: int,
    unknown: Callable[[bytes], Unknown],
) -> tuple[dict[str, Any], int, str | None, URL]:
    """Returns a page, its size in bytes, the link to the next one, and the URL that it came from."""
    response = await endpoint.send("GET", url, repository, headers, deadline, is_list=True)
    try:
        if response.status not in (200, 404):
            raise UpstreamInvalid(f"{shown(url)} answered {response.status}")
        body = await read_bounded(response, left, seconds)
        if response.status == 404:
            raise unknown(body)
    finally:
        response.release()
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        page = None
    if not isinstance(page, dict):
        raise UpstreamInvalid(f"{shown(url)} sent something that is not a JSON object")
    return page, len(body), _next_link(response), response.url


def _next_link(response: Response) -> str | None:
    """Returns the target of the first link with ``rel="next"``, or without ``rel``; None if there is none.

    For a Link header that cannot be parsed it returns "": there are more pages, but they cannot be found.
    """
    header = ",".join(response.headers.getall("Link", []))
    found = [(match[1], _relation(match[2])) for match in _LINK.finditer(header)]
    for target, relation in found:
        if relation is None or "next" in relation.lower().split():
            return target
    return "" if header.strip() and not found else None


def _relation(parameters: str) -> str | None:
    """Returns the value of the first ``rel`` among a link's parameters (RFC 8288, section 3.3); None if there is none."""
    for name, *values in _PARAMETER.findall(parameters):
        if name.lower() == "rel":
            return "".join(values)
    return None


def _next(endpoint: Endpoint, first: URL, link: str, said_by: URL) -> URL:
    """Returns the URL of the next page: the path of the first page with the query of the link. Raises UpstreamInvalid if the link has no query or is no URL.

    Only the query differs between pages. Registries behind a proxy or a redirect may link to an internal host, omit the proxy's prefix, or use another name for the
    repository.
    """
    url = parse_url(link, shown(said_by), said_by)
    if not url.raw_query_string:
        raise UpstreamInvalid(f"{shown(said_by)} has a link to a next page without a query")
    below = first.raw_path.removeprefix(f"{endpoint.base.raw_path.rstrip('/')}/v2/")
    return endpoint.resolve(f"{below}?{url.raw_query_string}")


def is_tag(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Tag.parse(value))
    except Invalid:
        return False


def is_descriptor(value: Any) -> bool:
    """Returns whether a value is a descriptor (image-spec 1.1, "descriptor.md") that can be sent to clients: without lone surrogates, NaN or infinity."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return isinstance(value["mediaType"], str) and isinstance(value["size"], int) and bool(Digest.parse(value["digest"]))
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, DigestInvalid):
        return False


def listed(page: dict[str, Any], key: str, beside: str) -> list[Any]:
    """Returns the list under `key` of a page; empty if it is null, or if there is only `beside`. Raises UpstreamInvalid for another document."""
    found = page.get(key)
    if isinstance(found, list):
        return found
    if found is None and (key in page or beside in page):
        return []
    raise UpstreamInvalid(f"upstream answered a request for a list with a document without {key}")
