"""Lists: tags, referrers, and the catalog of what is cached. OCI distribution-spec 1.1, "Content Discovery"."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from mirror.api.context import RequestContext
from mirror.api.responses import list_response
from mirror.api.targets import Resource, Target
from mirror.cache.cache import Cache
from mirror.cache.outcome import HIT, Outcome
from mirror.errors import PaginationInvalid
from mirror.manifests import OCI_INDEX
from mirror.names import Digest, Repository
from mirror.tasks import SingleFlight

_LARGEST_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class _Answer:
    body: bytes
    outcome: Outcome
    content_type: str
    headers: dict[str, str]


class Listing:
    """Answers requests for lists. Clients that ask for the same at the same time share one answer: a list may have a million tags."""

    def __init__(self, cache: Cache, default: str) -> None:
        """`default` is the registry whose repositories the catalog names without it."""
        self._cache = cache
        self._default = default
        self._answers: SingleFlight[_Answer] = SingleFlight()

    async def aclose(self) -> None:
        await self._answers.aclose()

    async def answer(
        self, context: RequestContext, target: Target, may_name: Callable[[Repository], bool] | None
    ) -> web.StreamResponse:
        """GET and HEAD of a list: `target` is of TAGS, REFERRERS or CATALOG, and a catalog names what `may_name`, all if that is None. Raises MirrorError."""

        async def make() -> web.StreamResponse:
            # A catalog of some is for one client.
            whose = may_name if target.resource is Resource.CATALOG else None
            key = (
                target.resource,
                target.prefix,
                target.path,
                target.registry,
                target.repository,
                tuple(sorted(target.query.items())),
                whose,
            )
            answer, joined = await self._answers.do(key, lambda: self._make(target, whose))
            outcome = answer.outcome
            context.outcome = replace(outcome, collapsed=True) if joined and outcome.forward == "miss" else outcome
            return list_response(answer.body, context.outcome, answer.content_type, answer.headers)

        return await context.keep(make)

    async def _make(self, target: Target, may_name: Callable[[Repository], bool] | None) -> _Answer:
        repository, reference = target.repository, target.reference
        if repository is None:
            return await self._catalog(target, may_name)
        if target.resource is Resource.REFERRERS and isinstance(reference, Digest):
            return await self._referrers(target, repository, reference)
        return await self._tags(target, repository)

    async def _tags(self, target: Target, repository: Repository) -> _Answer:
        """All tags that upstream has, a page at a time where `n` is given."""
        count = _count(target)
        # One more than the page has says whether there are more.
        wanted = None if count is None else count + 1
        found, outcome = await self._cache.lists.tags(repository, target.query.get("last", ""), wanted)
        page, headers = _paginate(found, target)
        return _Answer(await _json({"name": repository.path, "tags": page}), outcome, "application/json", headers)

    async def _referrers(self, target: Target, repository: Repository, digest: Digest) -> _Answer:
        """What refers to a manifest, as an index; filtered by `artifactType` here, so that one answer of upstream serves all filters."""
        found, outcome = await self._cache.lists.referrers(repository, digest)
        headers = {}
        if (wanted := target.query.get("artifactType")) is not None:
            found = [descriptor for descriptor in found if descriptor.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        return _Answer(await _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}), outcome, OCI_INDEX, headers)

    async def _catalog(self, target: Target, may_name: Callable[[Repository], bool] | None) -> _Answer:
        """The repositories that have something cached, by the names under which they can be pulled from here."""
        names = [
            repository.path if repository.registry == (target.registry or self._default) else str(repository)
            for repository in await self._cache.repositories()
            if target.registry in (None, repository.registry) and (may_name is None or may_name(repository))
        ]
        page, headers = _paginate(sorted(names), target)
        return _Answer(await _json({"repositories": page}), HIT, "application/json", headers)


async def _json(document: dict[str, Any]) -> bytes:
    # In a thread, since other requests go on meanwhile.
    return await asyncio.to_thread(lambda: json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace"))


def _count(target: Target) -> int | None:
    """How many entries are wanted; None for all. Raises PaginationInvalid."""
    number = target.query.get("n")
    if number is None:
        return None
    if not (number.isascii() and number.isdigit()):
        raise PaginationInvalid(f"n is the number of entries wanted, not {number[:40]!r}")
    return min(int(number[:9]), _LARGEST_PAGE)


def _paginate(names: list[str], target: Target) -> tuple[list[str], dict[str, str]]:
    """The names after `last`, `n` of them at most, and the Link to the rest (RFC 8288). Raises PaginationInvalid."""
    count, last = _count(target), target.query.get("last")
    if last:
        names = [name for name in names if name > last]
    if count is None:
        return names, {}
    page = names[:count]
    if count == 0 or len(names) <= count:
        return page, {}
    query = {key: target.query[key] for key in ("ns",) if key in target.query}
    following = urlencode({"n": count, "last": page[-1], **query})
    return page, {"Link": f'<{quote(target.prefix + target.path, safe="/:")}?{following}>; rel="next"'}
