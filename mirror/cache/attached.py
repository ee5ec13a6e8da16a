"""Fetches what is attached to images: signatures, attestations, SBOMs, and whatever else refers to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mirror.cache.lists import Lists
from mirror.cache.pull import Pull, Pulls
from mirror.errors import MirrorError, is_refusal
from mirror.manifests import COSIGN
from mirror.names import Digest, Reference, Repository, Tag

_SIDE_BY_SIDE = 8
_DEEPEST = 4
"""Levels of what refers to what refers to an image."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What is attached to images. The keys are in the order of their arrival."""

    digests: dict[Digest, None] = field(default_factory=dict)
    """Manifests that are cached whole."""
    faults: dict[str, None] = field(default_factory=dict)
    """Why something may be missing."""


async def fetch_attached(pulls: Pulls, lists: Lists, images: Iterable[Pull]) -> Attached:
    """Fetches what is attached to images that have been pulled. That nothing is attached is no fault."""
    found = Attached()
    slots = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def fetch(repository: Repository, reference: Reference) -> Digest | None:
        this = Pull(repository, reference)
        async with slots:
            try:
                await pulls.pull(this)
            except MirrorError as error:
                if not is_refusal(error):
                    found.faults[error.message] = None
                return None
        if this.digest is not None:
            found.digests[this.digest] = None
        return this.digest

    async def fetch_referrers(repository: Repository, subject: Digest, levels: int = _DEEPEST) -> None:
        async with slots:
            try:
                # As the image's tag: whoever has just signed it wants the signature too.
                listed, _ = await lists.referrers(repository, subject, anew=True)
            except MirrorError as error:
                if not is_refusal(error):
                    found.faults[error.message] = None
                return
        digests = set()
        for entry in listed:
            with contextlib.suppress(MirrorError, LookupError, TypeError):
                digests.add(Digest.parse(entry["digest"]))
        await asyncio.gather(*(fetch_with_referrers(repository, digest, levels) for digest in digests))

    async def fetch_with_referrers(repository: Repository, digest: Digest, levels: int) -> None:
        if await fetch(repository, digest) is not None and levels > 1:
            await fetch_referrers(repository, digest, levels - 1)

    async def fetch_signatures(repository: Repository, subject: Digest) -> None:
        await asyncio.gather(*(fetch(repository, Tag(f"{subject.algorithm}-{subject.hex}{end}")) for end in COSIGN))

    pulled = list(images)
    subjects = dict.fromkeys((this.repository, digest) for this in pulled for digest in this.subjects)
    attestations = dict.fromkeys((this.repository, digest) for this in pulled for digest in this.attestations)
    await asyncio.gather(
        *(fetch(*attestation) for attestation in attestations),
        *(fetch_referrers(*subject) for subject in subjects),
        *(fetch_signatures(*subject) for subject in subjects),
    )
    return found
