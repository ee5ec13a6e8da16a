"""Searches for repositories: at the registry while its search can be reached, and among what is cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirror.cache.hub_answers import PATIENCE, HubAnswers
from mirror.errors import MirrorError, RequestInvalid, SearchUnknown
from mirror.names import Repository, parse_search, short_name
from mirror.storage.inventory import Inventory

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
    listed: bool = False
    """True if upstream's search named it."""


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
    ) -> None:
        """`default` is the registry that is searched if a term names none; `aliases` are other names of registries."""
        self._inventory = inventory
        self._source = source
        self._default = default
        self._aliases = aliases
        self._answers: HubAnswers[Sequence[Result]] = HubAnswers("the search")

    async def aclose(self) -> None:
        await self._answers.aclose()

    async def find(self, text: str, count: int, patience: float = PATIENCE) -> Answer:
        """Searches for ``[REGISTRY/]TERM`` and waits up to `patience` seconds for upstream. Returns at most `count` repositories.

        Raises RequestInvalid, RegistryUnknown, CatalogFailed.
        """
        registry, term = parse_search(text, self._default, self._aliases)
        if not term or len(term) > _LONGEST_TERM or not term.isprintable():
            raise RequestInvalid(f"search for a term of 1 to {_LONGEST_TERM} printable characters, such as redis")
        source = self._source(registry)
        asked = term.lower()
        results, problem = await self._answers.get(registry, asked, lambda: self._ask(source, registry, asked), patience)
        cached = await self._cached(registry, term)
        return Answer(registry, term, _merged(cached, results or ())[:count], results is not None, problem)

    async def _ask(self, source: SearchSource, registry: str, term: str) -> Sequence[Result]:
        results = await source.search(term)
        if results is None:
            raise SearchUnknown(f"{registry} has no search that this mirror can use: name the whole repository")
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
            merged.append(Found(repository, tags, result.description, result.stars, result.official, True))
    return tuple(merged)
