"""Lists: tags, referrers, and the catalog of what is cached. OCI distribution-spec 1.1, "Content Discovery"."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from aiohttp import web

from mirror.api.context import RequestContext
from mirror.api.responses import json_response
from mirror.api.targets import Target
from mirror.cache.cache import Cache
from mirror.cache.outcome import HIT
from mirror.errors import PaginationInvalid
from mirror.manifests import OCI_INDEX
from mirror.names import Digest, Repository

_LARGEST_PAGE = 10_000


async def tags(context: RequestContext, cache: Cache, target: Target, repository: Repository) -> web.StreamResponse:
    """All tags that upstream has, a page at a time where `n` is given."""
    found, context.outcome = await cache.lists.tags(repository)
    page, headers = _page(found, target)
    return json_response({"name": repository.path, "tags": page}, context.outcome, headers=headers)


async def referrers(
    context: RequestContext, cache: Cache, target: Target, repository: Repository, digest: Digest
) -> web.StreamResponse:
    """What refers to a manifest, as an index; filtered by `artifactType` here, so that one answer of upstream serves all filters."""
    found, context.outcome = await cache.lists.referrers(repository, digest)
    headers = {}
    if (wanted := target.query.get("artifactType")) is not None:
        found = [descriptor for descriptor in found if descriptor.get("artifactType") == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    return json_response(index, context.outcome, OCI_INDEX, headers)


async def catalog(context: RequestContext, cache: Cache, target: Target, default: str) -> web.StreamResponse:
    """The repositories that have something cached, by the names under which they can be pulled from here."""
    context.outcome = HIT
    names = [
        repository.path if repository.registry == (target.registry or default) else str(repository)
        for repository in await cache.repositories()
        if target.registry in (None, repository.registry)
    ]
    page, headers = _page(sorted(names), target)
    return json_response({"repositories": page}, HIT, headers=headers)


def _page(names: list[str], target: Target) -> tuple[list[str], dict[str, str]]:
    """The names after `last`, `n` of them at most, and the Link to the rest (RFC 8288). Raises PaginationInvalid."""
    number, last = target.query.get("n"), target.query.get("last")
    if last:
        names = [name for name in names if name > last]
    if number is None:
        return names, {}
    if not (number.isascii() and number.isdigit()):
        raise PaginationInvalid(f"n is the number of entries wanted, not {number[:40]!r}")
    count = min(int(number[:9]), _LARGEST_PAGE)
    page = names[:count]
    if count == 0 or len(names) <= count:
        return page, {}
    query = {key: target.query[key] for key in ("ns",) if key in target.query}
    following = urlencode({"n": count, "last": page[-1], **query})
    return page, {"Link": f'<{quote(target.path, safe="/:")}?{following}>; rel="next"'}
