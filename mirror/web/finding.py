"""Gathers what the search page and the page of a repository's tags show."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from mirror.cache.cache import Cache
from mirror.cache.hub_answers import PATIENCE
from mirror.cache.outcome import Outcome
from mirror.errors import MirrorError, UpstreamTimeout
from mirror.names import Repository, natural
from mirror.storage.inventory import Image
from mirror.tasks import SingleFlight
from mirror.web.context import PageContext, page_number

_RESULTS = 50
_TAGS = 50
"""Tags on a page."""
_MOST_CACHED = 10_000
"""Cached images of a repository that are marked in its list of tags."""
_LONGEST_FILTER = 100


@dataclass(frozen=True, slots=True)
class TagLine:
    """A tag that upstream has, or that is cached. `size` is in bytes, None if unknown."""

    name: str
    image: Image | None
    """The cached image; None if it is not cached."""
    size: int | None
    platforms: tuple[str, ...]


class Finding:
    """Finds repositories and tags. Nothing here waits much longer than `PATIENCE` for upstream."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._tag_lists: SingleFlight[tuple[list[str], Outcome]] = SingleFlight()

    async def aclose(self) -> None:
        await self._tag_lists.aclose()

    async def search(self, text: str) -> dict[str, Any]:
        """Returns the values for search.html, but those of the list of cached images. Raises MirrorError."""
        if not text.strip():
            return {"answer": None, "listed": ()}
        answer = await self._cache.search.find(text, _RESULTS)
        return {"answer": answer, "listed": [found for found in answer.found if found.listed]}

    async def tags(self, context: PageContext, repository: Repository) -> dict[str, Any]:
        """Returns the values for tags.html. Raises Unknown if upstream has no such repository and nothing of it is cached."""
        wanted = context.query.get("filter", "").strip()[:_LONGEST_FILTER]
        cached, (names, problem), details = await asyncio.gather(
            self._cached(repository), self._names(repository), self._cache.tag_details.find(repository, wanted)
        )
        if problem is not None and not names and not cached:
            raise problem
        found = sorted((name for name in names | cached.keys() if wanted in name), key=natural)
        # Names such as "latest" first, then the newest versions.
        versions = [name for name in found if natural(name)[0]]
        ordered = [name for name in found if not natural(name)[0]] + versions[::-1]
        current = page_number(context.query)
        lines = []
        for name in ordered[(current - 1) * _TAGS : current * _TAGS]:
            image, known = cached.get(name), details.get(name)
            size = known.size if known is not None else None
            platforms = known.platforms if known is not None else ()
            if image is not None:
                size, platforms = size or image.size, platforms or image.platforms
            lines.append(TagLine(name, image, size, platforms))

        def link(page: int) -> str:
            query = {"view": "tags", "filter": wanted, "page": str(page) if page > 1 else ""}
            return f"/repository/{repository}?{urlencode({key: value for key, value in query.items() if value})}"

        return {
            "tags": lines,
            "total": len(ordered),
            "current": current,
            "pages": max(1, -(-len(ordered) // _TAGS)),
            "filter": wanted,
            "problem": problem,
            "link": link,
        }

    async def _cached(self, repository: Repository) -> dict[str, Image]:
        page = await self._cache.inventory.images("", "name", 0, _MOST_CACHED, repository)
        return {str(image.reference): image for image in page.entries if image.checked is not None}

    async def _names(self, repository: Repository) -> tuple[set[str], MirrorError | None]:
        """Returns the tags that upstream lists, and why they are not all or old; None if they are what it says now."""
        task, _ = self._tag_lists.start(repository, lambda: self._cache.lists.tags(repository))
        await asyncio.wait([task], timeout=PATIENCE)
        if not task.done():
            last = await self._cache.lists.last_tags(repository)
            return set(last), UpstreamTimeout(f"{repository.registry} did not list its tags in time")
        try:
            names, outcome = task.result()
        except MirrorError as error:
            return set(), error
        # An earlier list, or a part of one.
        old = outcome.detail is not None
        return set(names), UpstreamTimeout(f"{repository.registry} cannot list its tags now") if old else None
