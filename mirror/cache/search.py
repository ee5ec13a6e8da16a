"""Search for repositories: at the registry while its search can be reached, else among what is cached.

Nobody waits long for a search: what upstream has not answered in time is there for the next one. Answers are kept in memory, and are used however old they are
while upstream's search fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirror.errors import MirrorError, RequestInvalid, SearchUnknown, UpstreamTimeout
from mirror.names import Repository, parse_search, short_name
from mirror.storage.inventory import Inventory
from mirror.tasks import SingleFlight

log = logging.getLogger(__name__)

PATIENCE = 3.0
"""Seconds for which a person waits for upstream's search."""
_IMPATIENCE = 0.3
"""The same after a failure within the last `_FAILING` seconds."""
_FAILING = 60.0
_FRESH = 600.0
"""Seconds for which an answer is used without asking again."""
_MOST_KEPT = 200
_LONGEST_TERM = 100
_MOST_IMAGES = 500
"""Cached images that are looked through for a search, the last pulled first."""


class Result(Protocol):
    """A repository that upstream's search found."""

    @property
    def repository(self) -> Repository: ...
    @property
    def description(self) -> str: ...
    @property
    def stars(self) -> int: ...
    @property
    def official(self) -> bool: ...


class SearchSource(Protocol):
    """The upstream of one registry. Its methods raise MirrorError."""

    async def search(self, term: str) -> Sequence[Result] | None:
        """Returns None if the registry has no search."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A repository that was found. `tags` are its cached images, each as ``:tag`` or ``@digest``, the last pulled first."""

    repository: Repository
    tags: tuple[str, ...]
    description: str = ""
    stars: int = 0
    official: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found: what is cached, then the other results of upstream's search in its order."""

    registry: str
    term: str
    found: tuple[Found, ...]
    searched: bool
    """True if upstream's search has answered, now or earlier."""
    problem: MirrorError | None = None
    """Why upstream's answer is missing or old; None if there is nothing wrong."""


class Search:
    """Answers searches."""

    def __init__(
        self,
        inventory: Inventory,
        source: Callable[[str], SearchSource],
        default: str,
        aliases: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`default` is the registry that is searched if a term names none; `aliases` are other names of registries."""
        self._inventory = inventory
        self._source = source
        self._default = default
        self._aliases = aliases
        self._clock = clock
        self._asking: SingleFlight[Sequence[Result]] = SingleFlight()
        self._answers: OrderedDict[tuple[str, str], tuple[float, Sequence[Result]]] = OrderedDict()
        self._failed: dict[str, float] = {}

    async def aclose(self) -> None:
        await self._asking.aclose()

    async def find(self, text: str, count: int, patience: float = PATIENCE) -> Answer:
        """Searches for ``[REGISTRY/]TERM`` and waits up to `patience` seconds for upstream. Returns at most `count` repositories.

        Raises RequestInvalid, RegistryUnknown, CatalogFailed.
        """
        registry, term = parse_search(text, self._default, self._aliases)
        if not term or len(term) > _LONGEST_TERM or not term.isprintable():
            raise RequestInvalid(f"search for a term of 1 to {_LONGEST_TERM} printable characters, such as redis")
        source = self._source(registry)
        results, problem = await self._results(source, registry, term.lower(), patience)
        cached = await self._cached(registry, term)
        return Answer(registry, term, _merged(cached, results or ())[:count], results is not None, problem)

    async def _results(
        self, source: SearchSource, registry: str, term: str, patience: float
    ) -> tuple[Sequence[Result] | None, MirrorError | None]:
        """Returns upstream's results, None if there are none at hand; and why they are missing or old."""
        key = registry, term
        known = self._answers.get(key)
        if known is not None and self._clock() - known[0] < _FRESH:
            return known[1], None
        task, _ = self._asking.start(key, lambda: self._ask(source, registry, term))
        failed = self._failed.get(registry)
        if failed is not None and self._clock() - failed < _FAILING:
            patience = min(patience, _IMPATIENCE)
        await asyncio.wait([task], timeout=patience)
        try:
            if task.done():
                return task.result(), None
            problem: MirrorError = UpstreamTimeout(f"the search of {registry} did not answer in time")
            self._failed[registry] = self._clock()
        except MirrorError as error:
            problem = error
        return known[1] if known is not None else None, problem

    async def _ask(self, source: SearchSource, registry: str, term: str) -> Sequence[Result]:
        try:
            results = await source.search(term)
        except MirrorError as error:
            log.info("%s cannot be searched: %s", registry, error)
            self._failed[registry] = self._clock()
            raise
        if results is None:
            raise SearchUnknown(f"{registry} has no search that this mirror can use: name the whole repository")
        self._failed.pop(registry, None)
        self._answers[registry, term] = self._clock(), results
        self._answers.move_to_end((registry, term))
        if len(self._answers) > _MOST_KEPT:
            self._answers.popitem(last=False)
        return results

    async def _cached(self, registry: str, term: str) -> dict[Repository, list[str]]:
        """Returns cached repositories whose names contain every word of the term, with their images. A term without a registry finds those of all."""
        words = term.lower().split()
        within = "" if registry == self._default else f"{registry}/"
        page = await self._inventory.images(" ".join([within, *words]), "pulled", 0, _MOST_IMAGES)
        found: dict[Repository, list[str]] = {}
        for image in page.entries:
            name = short_name(image.repository)
            if name.startswith(within) and all(word in name.removeprefix(within) for word in words):
                prefix = "@" if image.checked is None else ":"
                found.setdefault(image.repository, []).append(f"{prefix}{image.reference}")
        return found


def _merged(cached: Mapping[Repository, list[str]], results: Sequence[Result]) -> tuple[Found, ...]:
    told = {result.repository: result for result in results}
    merged = []
    for repository in (*cached, *(result.repository for result in results if result.repository not in cached)):
        tags = tuple(cached.get(repository, ()))
        result = told.get(repository)
        if result is None:
            merged.append(Found(repository, tags))
        else:
            merged.append(Found(repository, tags, result.description, result.stars, result.official))
    return tuple(merged)
