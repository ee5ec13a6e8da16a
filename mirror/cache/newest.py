"""Which of several manifests that endpoints name for one tag is the newest, and whether one is older than what is cached.

What is compared is when they were made, as their publishers say: the annotation ``org.opencontainers.image.created`` of an index, of its entries or of a manifest
(image-spec 1.1, "annotations.md"), otherwise ``created`` in the configuration of one of its images ("config.md"). Headers are not used: Date and Last-Modified are
those of the endpoint's own cache. A date says nothing if it is a placeholder, as reproducible builds have them, or lies in the future.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from mirror.cache.freshness import is_fresh
from mirror.errors import MirrorError, UpstreamInvalid
from mirror.manifests import INDEXES, Descriptor, Manifest, entries_of
from mirror.names import Digest, Reference, Repository, Tag
from mirror.storage.image_config import parse_config, parse_moment
from mirror.storage.store import TagRecord

log = logging.getLogger(__name__)

_ANNOTATION = "org.opencontainers.image.created"
_EARLIEST = 1356998400.0
"""2013-01-01, before the first image: earlier dates are placeholders, such as 1970 or 1980."""
_AHEAD = 3600.0
"""Seconds that a publisher's clock may be ahead."""
_PATIENCE = 3.0
"""Seconds for finding out when a manifest was made."""
_KEPT_BACK = 86400.0
"""Seconds since its last check for which a cached tag is not replaced by an older manifest, unless all endpoints name that one."""
_MOST_REMEMBERED = 1000
_PREFERRED = "linux/amd64"


class TagAnswers(Protocol):
    """What endpoints say that a tag means."""

    @property
    def descriptors(self) -> Sequence[Descriptor]:
        """Different ones, in the order of the endpoints; at least one."""
        ...

    @property
    def decided(self) -> bool:
        """True if the first one counts without a comparison."""
        ...

    @property
    def unanimous(self) -> bool:
        """True if all endpoints have given this one answer."""
        ...


class ManifestSource(Protocol):
    """What is asked of upstream here. Raises MirrorError."""

    @property
    def compares_tags(self) -> bool:
        """True if the newest of all endpoints' tags counts."""
        ...

    def asks_peer(self, repository: Repository, reference: Reference) -> bool:
        """Returns whether another mirror of the fleet is asked first: whom such a mirror asks must not wait for the answer."""
        ...

    async def tag_answers(
        self, repository: Repository, tag: Tag, known: Digest | None, is_older: Callable[[Digest], Awaitable[bool]]
    ) -> TagAnswers: ...
    async def get_tag(
        self, repository: Repository, tag: Tag, known: Digest, is_older: Callable[[Digest], Awaitable[bool]]
    ) -> Manifest: ...
    async def head_manifest(self, repository: Repository, reference: Reference) -> Descriptor: ...
    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest: ...


class Newest:
    """Compares manifests by when they were made, which is remembered."""

    def __init__(
        self,
        manifest_of: Callable[[Repository, Digest], Awaitable[Manifest]],
        config_of: Callable[[Repository, Manifest], Awaitable[bytes]],
        clock: Callable[[], float],
    ) -> None:
        """`config_of` returns an image's configuration, empty if it has none. Both raise MirrorError."""
        self._manifest_of = manifest_of
        self._config_of = config_of
        self._clock = clock
        self._made: OrderedDict[Digest, float | None] = OrderedDict()

    async def choose(self, repository: Repository, tag: Tag, answers: TagAnswers, known: TagRecord | None) -> Descriptor:
        """Returns the newest of the answers; where dates are equal or missing, the first. `known` is what the cached tag means.

        Raises UpstreamInvalid if all answers are older than what is cached, and an endpoint that gave none may have a newer one.
        """
        offered = answers.descriptors
        if answers.decided or answers.unanimous or (len(offered) == 1 and known is not None and offered[0] == known.descriptor):
            return offered[0]
        digests = [descriptor.digest for descriptor in offered]
        if known is not None and known.descriptor.digest not in digests:
            digests.append(known.descriptor.digest)
        if len(digests) == 1:
            return offered[0]
        found = await asyncio.gather(*(self._when_made(repository, digest) for digest in digests))
        made = {digest: moment or 0.0 for digest, moment in zip(digests, found, strict=True)}
        newest = max(offered, key=lambda descriptor: made[descriptor.digest])
        if known is not None and self._keeps_back(known) and 0 < made[newest.digest] < made[known.descriptor.digest]:
            raise UpstreamInvalid(
                f"the endpoints of {repository.registry} that answer have an older {repository.path}:{tag} than the cached one"
            )
        return newest

    async def is_older(self, repository: Repository, offered: Digest, known: TagRecord) -> bool:
        """Returns whether a manifest was made before what the cached tag means; False if the dates do not tell, or the tag was not checked for `_KEPT_BACK` seconds."""
        if not self._keeps_back(known):
            return False
        made, before = await asyncio.gather(
            self._when_made(repository, offered), self._when_made(repository, known.descriptor.digest)
        )
        return made is not None and before is not None and made < before

    def is_outdated(self, found: Descriptor, known: TagRecord | None) -> bool:
        """Returns whether another mirror says what it heard of the registry before this one did, which may be what the tag meant before."""
        return (
            known is not None
            and found.age > 0
            and found.digest != known.descriptor.digest
            and self._clock() - found.age < known.checked
        )

    def _keeps_back(self, known: TagRecord) -> bool:
        return is_fresh(known.checked, _KEPT_BACK, self._clock())

    async def _when_made(self, repository: Repository, digest: Digest) -> float | None:
        """Returns when a manifest was made, in seconds since the epoch; None if its documents do not say, or cannot be had in time."""
        if digest in self._made:
            self._made.move_to_end(digest)
            return self._made[digest]
        try:
            async with asyncio.timeout(_PATIENCE):
                manifest = await self._manifest_of(repository, digest)
                made = self._plausible(_annotated(manifest))
                if made is None and (child := _child(manifest)) is not None:
                    manifest = await self._manifest_of(repository, child)
                    made = self._plausible(_annotated(manifest))
                if made is None:
                    config = parse_config(await self._config_of(repository, manifest))
                    made = self._plausible([config.created] if config is not None else [])
        except (MirrorError, TimeoutError) as error:
            log.info("when %s@%s was made cannot be found out: %s", repository, digest, error or "no answer in time")
            return None
        self._made[digest] = made
        if len(self._made) > _MOST_REMEMBERED:
            self._made.popitem(last=False)
        return made

    def _plausible(self, moments: Sequence[float | None]) -> float | None:
        """Returns the latest of the moments that say something."""
        return max(
            (moment for moment in moments if moment is not None and _EARLIEST <= moment <= self._clock() + _AHEAD), default=None
        )


def _annotated(manifest: Manifest) -> list[float | None]:
    """Returns the dates in the annotations of a manifest; if it has none, in those of an index's entries."""
    try:
        document = json.loads(manifest.body)
    except (ValueError, RecursionError):
        return []
    own = _created(document)
    if own is not None or manifest.media_type not in INDEXES:
        return [own]
    entries = document.get("manifests")
    return [_created(entry) for entry in entries] if isinstance(entries, list) else []


def _created(described: Any) -> float | None:
    annotations = described.get("annotations") if isinstance(described, dict) else None
    return parse_moment(annotations.get(_ANNOTATION)) if isinstance(annotations, dict) else None


def _child(manifest: Manifest) -> Digest | None:
    """Returns the image of an index that is looked at: that for `_PREFERRED`, or else the first."""
    entries = entries_of(manifest.body) if manifest.media_type in INDEXES else []
    preferred = [entry for entry in entries if entry.platform == _PREFERRED]
    return next((entry.descriptor.digest for entry in preferred or entries), None)
