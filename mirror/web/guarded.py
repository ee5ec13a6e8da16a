"""What the page about guards shows: what waits, what is refused and to whom, what rules have done, what moved and what was blocked by hand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.access.audit import RefusedClient
from mirror.cache.cache import Cache
from mirror.cache.guarding import BY_HAND, Guard
from mirror.errors import CatalogFailed
from mirror.names import Digest, Reference, Repository, Tag
from mirror.regular_files import NoFile
from mirror.storage.store import Store
from mirror.web.site_info import SiteInfo

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


async def _kept(store: Store, guard: Guard | None) -> tuple[list[Kept], list[Kept], int]:
    """Returns the tags that a release helps, and those that it does not, as the rules of now decide by what is here; and how many tags were not looked at.

    Raises CatalogFailed.
    """
    if guard is None:
        return [], [], 0
    held = await store.held()
    waiting: list[Kept] = []
    refused: list[Kept] = []
    for one in held[:_MOST_TAGS]:
        ruling = await guard.explain(one.repository, one.tag)
        if ruling.held_until is None or not ruling.verdicts:
            # Rules have changed since it was asked for, or what they are about.
            continue
        rule, _, reason, check = ruling.verdicts[0]
        served = None if ruling.serve is None else ruling.serve.digest
        found = Kept(one.repository, one.tag, one.new, one.since, served, ruling.held_until, rule, check, reason)
        (waiting if check in _RELEASABLE else refused).append(found)
    return waiting, refused, max(0, len(held) - _MOST_TAGS)


async def about_guards(cache: Cache, site_info: SiteInfo, *, for_admin: bool) -> dict[str, Any]:
    """Returns the values of the page's template. To whom something was refused is `for_admin` only: so is the audit log. Raises CatalogFailed."""
    waiting, refused, more = await _kept(cache.store, cache.guard)
    clients: Mapping[tuple[str, str, str], Sequence[RefusedClient]] | None = None
    if for_admin:
        try:
            clients = await asyncio.to_thread(site_info.refused)
        except NoFile:
            clients = {}
        except OSError as error:
            raise CatalogFailed(f"the audit log cannot be read: {error}") from None

    def refused_to(rule: str, repository: Repository, reference: Reference) -> Sequence[RefusedClient]:
        return (clients or {}).get((rule, str(repository), str(reference)), ())

    return {
        "waiting": waiting,
        "refused": refused,
        "more": more,
        "ruled": await cache.store.rulings(_MOST),
        "refused_to": refused_to,
        "is_noted": clients is not None,
        "moves": await cache.store.moves(_MOST),
        "blocks": await cache.store.blocks(),
        "by_hand": BY_HAND,
        "most": _MOST,
        "most_clients": _MOST_CLIENTS,
        "endless": math.inf,
    }
