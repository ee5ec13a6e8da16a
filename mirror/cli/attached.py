"""Fetches what is attached to images: signatures, attestations, SBOMs, and whatever else refers to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from mirror.bundles.contents import COSIGN, Gatherer
from mirror.errors import Denied, MirrorError, Unknown
from mirror.names import Digest, Reference, Repository, Tag

if TYPE_CHECKING:
    from mirror.cache.cache import Cache

_SIDE_BY_SIDE = 8
_DEEPEST = 4
"""Levels of what refers to what refers to an image."""


async def fetch_attached_to(
    cache: Cache, named: Iterable[tuple[Repository, Reference]], platforms: Collection[str] | None
) -> list[str]:
    """Fetches what is attached to cached images, for these platforms, None for all. Returns what upstream failed to tell or to give."""
    gathered = Gatherer(cache.store, platforms, cached=False, referrers=True)
    # What is not cached has been reported by the pull.
    await gathered.add_all(list(named))
    return await fetch_attached(cache, gathered.subjects, gathered.attestations)


async def fetch_attached(
    cache: Cache, subjects: Iterable[tuple[Repository, Digest]], attestations: Iterable[tuple[Repository, Digest]]
) -> list[str]:
    """Fetches the attestations, and what refers to the subjects. That there is none is no fault; returns what upstream failed to tell or to give."""
    from mirror.cache.pull import Pull

    slots = asyncio.Semaphore(_SIDE_BY_SIDE)
    faults: dict[str, None] = {}

    async def fetch(repository: Repository, reference: Reference) -> bool:
        async with slots:
            try:
                await cache.pulls.pull(Pull(repository, reference))
                return True
            except (Unknown, Denied):
                pass
            except MirrorError as error:
                faults[error.message] = None
        return False

    async def fetch_referrers(repository: Repository, subject: Digest, levels: int = _DEEPEST) -> None:
        async with slots:
            try:
                listed, _ = await cache.lists.referrers(repository, subject)
            except (Unknown, Denied):
                listed = []
            except MirrorError as error:
                faults[error.message] = None
                return
        digests = set()
        for entry in listed:
            with contextlib.suppress(MirrorError, LookupError, TypeError):
                digests.add(Digest.parse(entry["digest"]))
        await asyncio.gather(*(fetch_with_referrers(repository, digest, levels) for digest in digests))

    async def fetch_with_referrers(repository: Repository, digest: Digest, levels: int) -> None:
        if await fetch(repository, digest) and levels > 1:
            await fetch_referrers(repository, digest, levels - 1)

    async def fetch_signatures(repository: Repository, subject: Digest) -> None:
        await asyncio.gather(*(fetch(repository, Tag(f"{subject.algorithm}-{subject.hex}{end}")) for end in COSIGN))

    subjects = list(subjects)
    await asyncio.gather(
        *(fetch(repository, digest) for repository, digest in attestations),
        *(fetch_referrers(*subject) for subject in subjects),
        *(fetch_signatures(*subject) for subject in subjects),
    )
    return list(faults)
