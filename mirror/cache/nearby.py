"""What is cached that comes near to an image which is not: for the error of a mirror that may not ask a registry."""

from __future__ import annotations

import difflib

from mirror.errors import CatalogFailed, Offline
from mirror.names import Digest, Reference, Repository, image_name
from mirror.storage.inventory import Inventory

_MOST_NAMED = 8
_MOST_COMPARED = 500
"""Cached tags, or names, that are compared with the one asked for, the last pulled first."""
_SHORTEST_PART = 3
"""Characters of a name that says something where it is part of another one."""
_SIMILAR = 0.75
"""Ratio from which on `difflib` calls two names similar: two letters of five that changed places have 0.8."""


async def offline_miss(inventory: Inventory, repository: Repository, reference: Reference | None, others: bool = True) -> Offline:
    """Returns an error that names up to 8 cached tags of the repository; else images with a similar name; else those pulled last.

    Other repositories are named only with `others`.
    """
    asked = str(repository) if reference is None else image_name(repository, reference)
    try:
        what = await _what_there_is(inventory, repository, reference, others=others)
    except CatalogFailed as error:
        what = error.message
    return Offline(f"offline (upstream.offline), and not in the cache: {asked}; {what}")


async def _what_there_is(inventory: Inventory, repository: Repository, reference: Reference | None, *, others: bool) -> str:
    page = await inventory.images("", "pulled", 0, _MOST_COMPARED, repository)
    if page.entries:
        names = [str(image.reference) for image in page.entries]
        if reference is not None and not isinstance(reference, Digest):
            names = difflib.get_close_matches(str(reference), names, _MOST_NAMED, cutoff=0.0)
        return f"cached of {repository}: {_some(names, page.total)}"
    if not others:
        return f"nothing is cached of {repository}"
    last = _last_part(repository)
    # The search finds names that contain it, however many are cached; the other names are compared.
    for search in (last, ""):
        page = await inventory.images(search, "pulled", 0, _MOST_COMPARED)
        similar = [str(image) for image in page.entries if _is_similar(last, _last_part(image.repository))]
        if similar:
            return f"cached under a similar name: {_some(similar, len(similar))}"
    if page.entries:
        return f"nothing with a similar name is cached, but {_some([str(image) for image in page.entries], page.total)}"
    return "the cache is empty: bring images with mirror import, or with mirror pull where there is a network"


def _last_part(repository: Repository) -> str:
    return repository.path.rpartition("/")[2]


def _is_similar(asked: str, cached: str) -> bool:
    """Returns whether one contains the other, such as ``redis`` and ``redis-stack``, or they differ by a slip such as ``rdeis``."""
    shorter, longer = sorted((asked, cached), key=len)
    return (len(shorter) >= _SHORTEST_PART and shorter in longer) or difflib.SequenceMatcher(
        None, asked, cached
    ).ratio() >= _SIMILAR


def _some(names: list[str], total: int) -> str:
    shown = names[:_MOST_NAMED]
    more = total - len(shown)
    return f"{', '.join(shown)}{f' and {more} more' if more > 0 else ''}"
