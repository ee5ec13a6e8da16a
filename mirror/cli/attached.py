"""Fetches what is attached to images: signatures, attestations, SBOMs, and whatever else refers to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mirror.bundles.contents import COSIGN
from mirror.errors import Denied, MirrorError, Unknown
from mirror.names import Digest, Reference, Repository, Tag

if TYPE_CHECKING:
    from mirror.cache.cache import Cache

_SIDE_BY_SIDE = 8


async def fetch_attached(
    cache: Cache, subjects: Iterable[tuple[Repository, Digest]], attestations: Iterable[tuple[Repository, Digest]]
) -> list[str]:
    """Fetches the attestations, and what refers to the subjects. That there is none is no fault; returns what upstream failed to tell or to give."""
    from mirror.cache.pull import Pull

    slots = asyncio.Semaphore(_SIDE_BY_SIDE)
    faults: dict[str, None] = {}

    async def fetch(repository: Repository, reference: Reference) -> None:
        async with slots:
            try:
                await cache.pulls.pull(Pull(repository, reference))
            except (Unknown, Denied):
                pass
            except MirrorError as error:
                faults[error.message] = None

    async def fetch_referrers(repository: Repository, subject: Digest) -> None:
        async with slots:
            try:
                listed, _ = await cache.lists.referrers(repository, subject)
            except (Unknown, Denied):
                listed = []
            except MirrorError as error:
                faults[error.message] = None
                return
        references: list[Reference] = [Tag(f"{subject.algorithm}-{subject.hex}{end}") for end in COSIGN]
        for entry in listed:
            try:
                references.append(Digest.parse(entry["digest"]))
            except (MirrorError, LookupError, TypeError):
                continue
        await asyncio.gather(*(fetch(repository, reference) for reference in references))

    await asyncio.gather(
        *(fetch(repository, digest) for repository, digest in attestations),
        *(fetch_referrers(repository, subject) for repository, subject in subjects),
    )
    return list(faults)
