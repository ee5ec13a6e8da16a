"""What somebody is shown who may not pull everything: the images of the repositories that they may pull from, and nothing that tells of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mirror.names import Repository
from mirror.storage.inventory import Details, Image, Inventory, Page, RepositoryLine

MaySee = Callable[[Repository], bool] | None
"""None for everything."""


async def seen_repositories(inventory: Inventory, may_see: MaySee, order: str, start: int, count: int) -> Page[RepositoryLine]:
    """As `Inventory.repositories`."""
    if may_see is None:
        return await inventory.repositories(order, start, count)
    found = await inventory.repositories(order, 0, 10**9)
    seen = [line for line in found.entries if may_see(line.repository)]
    return Page(tuple(seen[start : start + count]), len(seen))


async def seen_images(
    inventory: Inventory, may_see: MaySee, search: str, order: str, start: int, count: int, repository: Repository | None = None
) -> Page[Image]:
    """As `Inventory.images`."""
    if may_see is None:
        return await inventory.images(search, order, start, count, repository)
    found = await inventory.images(search, order, 0, None, repository)
    seen = [replace(image, shared=0) for image in found.entries if may_see(image.repository)]
    return Page(tuple(seen[start : start + count]), len(seen))


def seen_details(details: Details, may_see: Callable[[Repository], bool]) -> Details | None:
    """An image without what it has in common with others; None if it may not be seen."""
    if not may_see(details.image.repository):
        return None
    variants = tuple(
        replace(variant, layers=tuple(replace(layer, images=1) for layer in variant.layers)) for variant in details.variants
    )
    return replace(details, image=replace(details.image, shared=0), variants=variants, neighbours=())
