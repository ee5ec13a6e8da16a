"""``mirror pin`` and ``mirror unpin``: images that eviction passes by."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import images_of, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.names import Reference, Repository, image_name

if TYPE_CHECKING:
    from mirror.storage.store import Store


@click.command(short_help="Keep images from eviction.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@cache_options
def pin(images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...]) -> None:
    """Keeps images from eviction and from age limits: what a tag means, at any time, with all that is cached of it.

    Nothing is fetched by this: mirror pull does that.
    """
    named = images_of(images)

    async def work(store: Store) -> None:
        for repository, reference in named:
            cached = await store.pin(repository, reference)
            rest = "" if cached else "; it is not cached yet: mirror pull fetches it, or the first client does"
            click.echo(f"{image_name(repository, reference)} is pinned{rest}")

    on_store(settings_or_exit(config, cache_dir, upstreams), work)


@click.command(short_help="Give pinned images back to eviction.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@cache_options
def unpin(images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...]) -> None:
    """Gives pinned images back to eviction. The exit status is 1 where one was not pinned by that very name."""
    named = images_of(images)

    async def work(store: Store) -> list[tuple[Repository, Reference]]:
        return [one for one in named if not await store.unpin(*one)]

    not_pinned = on_store(settings_or_exit(config, cache_dir, upstreams), work)
    for one in named:
        if one in not_pinned:
            click.echo(f"mirror: {image_name(*one)} was not pinned by this name", err=True)
        else:
            click.echo(f"{image_name(*one)} is no longer pinned")
    sys.exit(1 if not_pinned else 0)
