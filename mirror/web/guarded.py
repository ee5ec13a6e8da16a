"""What the page about guards shows: what waits, what is refused and to whom, what rules have done, what moved and what was blocked by hand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.access.audit import RefusedClient
from mirror.cache.cache import Cache
from mirror.cache.guarding import BY_HAND
from mirror.errors import CatalogFailed
from mirror.names import Digest, Reference, Repository, Tag
from mirror.regular_files import NoFile
from mirror.storage.sightings import Block, Move, Ruled
from mirror.web.site_info import SiteInfo
from mirror.web.worked_out import WorkedOut

_MOST = 50
"""Lines of each list."""
_MOST_TAGS = 200
"""Tags of which it is asked what holds them back."""
_MOST_CLIENTS = 5
"""Clients that are named to whom the same thing was refused."""
_RELEASABLE = ("cooldown", "immutable", "refuse_older")
"""Checks that a release ends; the others are decided on content, not on that a tag has moved."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A tag whose new meaning clients do not get. Times in seconds since the epoch."""

    repository: Repository
    tag: Tag
    new: Digest
    since: float
    """When the tag was first seen to mean it."""
    served: Digest | None
    """What clients get in its place; None if nothing."""
    until: float
    """Infinite if no time ends it."""
    rule: str
    check: str
    """The setting of the rule that it comes of."""
    reason: str


@dataclass(frozen=True, slots=True)
class _Worked:
    """What is the same for all who look. `more` are the tags that were not looked at."""

    waiting: Sequence[Kept]
    refused: Sequence[Kept]
    more: int
    ruled: Sequence[Ruled]
    moves: Sequence[Move]
    blocks: Sequence[Block]


class GuardReport:
    """Works out what the page shows: to decide on hundreds of tags takes a while, and anybody may look."""

    def __init__(self, cache: Cache, site_info: SiteInfo) -> None:
        self._cache = cache
        self._site_info = site_info
        self._worked = WorkedOut(self._work_out)
        self.aclose = self._worked.aclose
        self.changed = self._worked.changed

    async def shown(self, *, for_admin: bool) -> dict[str, Any]:
        """Returns the values of the page's template. To whom something was refused is `for_admin` only: so is the audit log. Others may get
        what is some seconds old. Raises CatalogFailed."""
        clients: Mapping[tuple[str, str, str], Sequence[RefusedClient]] | None = None
        if for_admin:
            clients = await self._clients()
        worked = await self._worked.get(anew=for_admin)

        def refused_to(rule: str, repository: Repository, reference: Reference) -> Sequence[RefusedClient]:
            return (clients or {}).get((rule, str(repository), str(reference)), ())

        return {
            "waiting": worked.waiting,
            "refused": worked.refused,
            "more": worked.more,
            "ruled": worked.ruled,
            "refused_to": refused_to,
            "is_noted": clients is not None,
            "moves": worked.moves,
            "blocks": worked.blocks,
            "by_hand": BY_HAND,
            "most": _MOST,
            "most_clients": _MOST_CLIENTS,
            "endless": math.inf,
        }

    async def _clients(self) -> Mapping[tuple[str, str, str], Sequence[RefusedClient]] | None:
        try:
            return await asyncio.to_thread(self._site_info.refused)
        except NoFile:
            return {}
        except OSError as error:
            raise CatalogFailed(f"the audit log cannot be read: {error}") from None

    async def _work_out(self) -> _Worked:
        """Decides as the rules of now do, by what is here."""
        store, guard = self._cache.store, self._cache.guard
        held = [] if guard is None else await store.held()
        waiting: list[Kept] = []
        refused: list[Kept] = []
        for one in held[:_MOST_TAGS]:
            assert guard is not None
            ruling = await guard.explain(one.repository, one.tag)
            if ruling.held_until is None or not ruling.verdicts:
                # Rules have changed since it was asked for, or what they are about.
                continue
            rule, _, reason, check = ruling.verdicts[0]
            served = None if ruling.serve is None else ruling.serve.digest
            found = Kept(one.repository, one.tag, one.new, one.since, served, ruling.held_until, rule, check, reason)
            (waiting if check in _RELEASABLE else refused).append(found)
        ruled, moves, blocks = await store.rulings(_MOST), await store.moves(_MOST), await store.blocks()
        return _Worked(waiting, refused, max(0, len(held) - _MOST_TAGS), ruled, moves, blocks)
