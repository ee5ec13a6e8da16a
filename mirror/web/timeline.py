"""The history of a tag for the image's page: what it meant, and what changed from one image to the next where both are still cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.names import Digest, Repository, Tag
from mirror.storage.inventory import Details, Inventory, Variant
from mirror.storage.sightings import Sighting
from mirror.storage.store import Store
from mirror.web import filters

_MOST = 12
"""Sightings that are shown, the latest."""
_MOST_NAMES = 6
_PREFERRED = "linux/amd64"

Change = tuple[str, Mapping[str, Any]]
"""What changed, and the values of its text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A sighting. `changes` is None if one of the two images is not cached."""

    sighting: Sighting
    went_back: bool
    changes: tuple[Change, ...] | None


async def timeline(store: Store, inventory: Inventory, repository: Repository, tag: Tag) -> list[Entry]:
    """Returns what a tag has meant, the latest first. Raises CatalogFailed."""
    history = await store.history(repository, tag)
    shown = range(max(0, len(history) - _MOST), len(history))
    variants: dict[Digest, Variant | None] = {}
    for number in shown:
        for digest in {history[number].digest, history[max(0, number - 1)].digest} - variants.keys():
            variants[digest] = _compared(await inventory.image(repository, digest))
    entries = []
    for number in shown:
        this = history[number]
        changes = None
        if number and history[number - 1].digest != this.digest:
            before, now = variants[history[number - 1].digest], variants[this.digest]
            changes = _changes(before, now) if before is not None and now is not None else None
        back = any(earlier.digest == this.digest for earlier in history[: max(0, number - 1)])
        entries.append(Entry(this, back, changes))
    return entries[::-1]


def _compared(details: Details | None) -> Variant | None:
    """Returns the image of an index that is compared: that for `_PREFERRED`, or else the first whose configuration is cached."""
    found = [variant for variant in (details.variants if details is not None else ()) if variant.settings is not None]
    return min(found, key=lambda variant: variant.platform != _PREFERRED, default=None)


def _changes(before: Variant, now: Variant) -> tuple[Change, ...]:
    found: list[Change] = []
    old = {layer.descriptor.digest for layer in before.layers}
    new = sum(layer.descriptor.digest not in old for layer in now.layers)
    if new or len(now.layers) != len(before.layers):
        found.append(("layers", {"new": new, "n": len(now.layers)}))
    if before.size != now.size:
        found.append(("size", {"before": filters.size(before.size), "after": filters.size(now.size)}))
    then, after = before.settings, now.settings
    assert then is not None and after is not None
    if then.created != after.created and then.created is not None and after.created is not None:
        found.append(("created", {"before": filters.date(then.created), "after": filters.date(after.created)}))
    for name, one, other in (
        ("entrypoint", " ".join(then.entrypoint), " ".join(after.entrypoint)),
        ("command", " ".join(then.command), " ".join(after.command)),
        ("user", then.user, after.user),
    ):
        if one != other:
            found.append((name, {"before": one or "-", "after": other or "-"}))
    for name, pairs, others in (
        ("environment", then.environment, after.environment),
        ("labels", then.labels, after.labels),
    ):
        if differing := _differing(dict(pairs), dict(others)):
            found.append((name, {"names": differing}))
    return tuple(found)


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Returns the names of pairs that were added (+), removed (-) or changed, some of them."""
    names = [f"+{name}" for name in now if name not in before] + [f"-{name}" for name in before if name not in now]
    names += [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(_some(names))


def _some(names: Sequence[str]) -> list[str]:
    return [*names[:_MOST_NAMES], *(["…"] if len(names) > _MOST_NAMES else [])]
