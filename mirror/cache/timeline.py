"""The history of a tag for people: what it meant, and what changed from one image to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirror.cache.comparing import Change, Documents, changes, documents_in
from mirror.cache.previews import Previews
from mirror.errors import MirrorError
from mirror.names import Digest, Repository, Tag
from mirror.storage.inventory import Inventory
from mirror.storage.sightings import Sighting
from mirror.storage.store import Store


@dataclass(frozen=True, slots=True)
class Entry:
    """A sighting, and what changed from the one before; of what clients do not get, from what they got last.

    `changes` is None if that is not known. `can_ask` is True where the documents of this image are not here, and can be had from the registry if anywhere; `fault`
    is why they could not.
    """

    sighting: Sighting
    went_back: bool
    changes: tuple[Change, ...] | None
    can_ask: bool = False
    fault: MirrorError | None = None


class Timelines:
    """Compares what tags have meant."""

    def __init__(self, store: Store, inventory: Inventory, previews: Previews) -> None:
        self._store = store
        self._inventory = inventory
        self._previews = previews

    async def of_tag(self, repository: Repository, tag: Tag, most: int, *, ask: bool) -> list[Entry]:
        """Returns the last sightings of a tag, the latest first. With `ask`, the registry is asked for the documents of what clients do not get now. Raises CatalogFailed."""
        history = await self._store.history(repository, tag)
        lives_here = self._store.hosted.covers(repository)
        cached: dict[Digest, list[Documents]] = {}
        entries = []
        for number in range(max(0, len(history) - most), len(history)):
            this, before = history[number], _base(history, number)
            back = any(earlier.digest == this.digest for earlier in history[: max(0, number - 1)])
            if before is None:
                entries.append(Entry(this, back, None))
                continue
            old, new = [await self._cached(repository, one.digest, cached) for one in (before, this)]
            is_last = number == len(history) - 1
            compared = changes(old, new) if old and new else None
            can_ask, fault = compared is None and is_last and bool(old) and this.gone is None and not lives_here, None
            if can_ask and ask:
                try:
                    fetched = await self._previews.documents(repository, this.digest, [one.platform for one in old])
                except MirrorError as error:
                    fault = error
                else:
                    compared, can_ask = changes(old, fetched), False
            entries.append(Entry(this, back, compared, can_ask, fault))
        return entries[::-1]

    async def _cached(self, repository: Repository, digest: Digest, known: dict[Digest, list[Documents]]) -> list[Documents]:
        if digest not in known:
            details = await self._inventory.image(repository, digest)
            known[digest] = [] if details is None else documents_in(details.variants)
        return known[digest]


def _base(history: Sequence[Sighting], number: int) -> Sighting | None:
    """Returns the sighting that another one is compared with; None if there is none, or it is of the same image."""
    this, earlier = history[number], history[:number]
    if not earlier:
        return None
    served = [sighting for sighting in earlier if sighting.served is not None]
    base = earlier[-1]
    if this.served is None and served:
        base = max(served, key=lambda sighting: sighting.served or 0.0)
    return None if base.digest == this.digest else base
