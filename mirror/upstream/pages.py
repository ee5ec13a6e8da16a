"""Lists that come in pages, linked by ``Link: <…>; rel="next"`` (distribution-spec 1.1, "Listing Tags"; RFC 8288)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yarl import URL

from mirror.errors import MirrorError, Unknown, UpstreamInvalid
from mirror.names import Repository
from mirror.upstream.endpoint import Endpoint
from mirror.upstream.receiver import Response
from mirror.upstream.transport import read_bounded, shown
from mirror.upstream.urls import parse_url

log = logging.getLogger(__name__)

_LARGEST = 32 * 1024 * 1024
"""Bytes of all pages."""
_MOST = 4000
"""Quay pages by 50, GHCR was seen with a thousand pages."""
_LINK = re.compile(r'<([^<>]*)>((?:[^<"]|"[^"<]*")*)')
_REL = re.compile(r""";\s*rel\s*=\s*["']?([^"';,]*)""", re.IGNORECASE)
"""Every piece of a header is looked at once: one of 64 KiB may be made to be looked at for long."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a registry listed. Not `complete` where it broke off, or was longer than a list may be."""

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
    """All pages from `url` on; `entries` takes a page apart, or raises UpstreamInvalid; `unknown` makes the error of a 404's body.

    The first page's failure is raised: Unknown, Denied, UpstreamError. A later one's loses nothing of what came before. Each page has `seconds` of its own.
    """
    found: list[Any] = []
    left, seen, first = _LARGEST, {url}, url
    while True:
        try:
            page, size, link, said_by = await _page(endpoint, repository, url, headers, deadline, seconds, left, unknown)
            found += (listed := entries(page))
        except MirrorError as error:
            if len(seen) == 1:
                raise
            log.warning("a list of %s broke off at page %d: %s", repository, len(seen), error.message)
            return Listing(found, False)
        left -= size
        if link is None:
            return Listing(found, True)
        try:
            url = _next(endpoint, first, link, said_by)
        except UpstreamInvalid as error:
            log.warning("a list of %s breaks off: %s", repository, error.message)
            return Listing(found, False)
        if url in seen and not listed:
            # Some registries link on from their last page, to an empty one that links to itself.
            return Listing(found, True)
        if url in seen or len(seen) >= _MOST or left <= 0:
            log.warning(
                "a list of %s is longer than %d pages or %d bytes, or goes in a circle: cut short", repository, _MOST, _LARGEST
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
    """A page, its size in bytes, the link to the next one, and the URL that gave it."""
    response = await endpoint.send("GET", url, repository, headers, deadline)
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
    """The target of the first link to a next page; of a link that does not say what it leads to; None where there is none.

    A Link that cannot be read is one to "": there are further pages, which cannot be found.
    """
    header = ",".join(response.headers.getall("Link", []))
    found = [(match[1], _REL.search(match[2])) for match in _LINK.finditer(header)]
    for target, relation in found:
        if relation is None or "next" in relation[1].lower().split():
            return target
    return "" if header.strip() and not found else None


def _next(endpoint: Endpoint, first: URL, link: str, said_by: URL) -> URL:
    """The next page: the first one's path with the link's query. Raises UpstreamInvalid where the link has none, or is no URL.

    Pages differ in their query alone; registries behind a proxy or a redirect link to an inner host, leave the proxy's prefix out, or know the repository by
    another name.
    """
    url = parse_url(link, shown(said_by), said_by)
    if not url.raw_query_string:
        raise UpstreamInvalid(f"{shown(said_by)} links to a next page that is no registry's")
    below = first.raw_path.removeprefix(f"{endpoint.base.raw_path.rstrip('/')}/v2/")
    return endpoint.resolve(f"{below}?{url.raw_query_string}")
