"""Sizes and platforms of tags that are not cached, where a registry tells them beside its API, as Docker Hub does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mirror.cache.hub_answers import PATIENCE, HubAnswers
from mirror.cache.own import Own
from mirror.names import Repository


class TagDetail(Protocol):
    """What is known about a tag. `size` is in bytes, None if unknown."""

    @property
    def size(self) -> int | None: ...
    @property
    def platforms(self) -> tuple[str, ...]: ...


class TagDetailsSource(Protocol):
    """The upstream of one registry. Its methods raise MirrorError."""

    async def tag_details(self, repository: Repository, containing: str) -> Mapping[str, TagDetail] | None:
        """Returns None if the registry tells none."""
        ...


class TagDetails:
    """Looks up details of tags."""

    def __init__(self, source: Callable[[str], TagDetailsSource], own: Own) -> None:
        """`source` gives a registry by its name; `own` has the repositories that live here, of which no registry knows anything."""
        self._source = source
        self._own = own
        self._answers: HubAnswers[Mapping[str, TagDetail]] = HubAnswers("the list of tags' sizes")

    async def aclose(self) -> None:
        await self._answers.aclose()

    async def find(self, repository: Repository, containing: str) -> Mapping[str, TagDetail]:
        """Returns details by tag, as far as they are known in time, of tags whose names contain a string. Raises RegistryUnknown."""
        if self._own.covers(repository):
            return {}
        source = self._source(repository.registry)

        async def ask() -> Mapping[str, TagDetail]:
            return await source.tag_details(repository, containing) or {}

        found, _ = await self._answers.get(repository.registry, (repository, containing), ask, PATIENCE)
        return found or {}
