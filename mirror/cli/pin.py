"""``mirror pin`` and ``mirror unpin``: images that eviction passes by."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import images_of, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import tell_json
from mirror.names import Reference, Repository, image_name

if TYPE_CHECKING:
    from mirror.storage.store import Store


@click.command(short_help="Keep images from eviction.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of image, pinned, cached.")
def pin(images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Keeps images from eviction and from age limits: what a tag means, at any time, with all that is cached of it.

    Nothing is fetched by this: mirror pull does that.
    """
    named = images_of(images)

    async def work(store: Store) -> list[dict[str, Any]]:
        return [{"image": image_name(*one), "pinned": True, "cached": await store.pin(*one)} for one in named]

    done = on_store(settings_or_exit(config, cache_dir, upstreams), work)
    if as_json:
        tell_json(done)
        return
    for one in done:
        rest = "" if one["cached"] else "; it is not cached yet: mirror pull fetches it, or the first client does"
        click.echo(f"{one['image']} is pinned{rest}")


@click.command(short_help="Give pinned images back to eviction.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of image, unpinned.")
def unpin(images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], as_json: bool) -> None:
    """Gives pinned images back to eviction. The exit status is 1 where one was not pinned by that very name."""
    named = images_of(images)

    async def work(store: Store) -> list[tuple[Repository, Reference]]:
        return [one for one in named if not await store.unpin(*one)]

    not_pinned = on_store(settings_or_exit(config, cache_dir, upstreams), work)
    if as_json:
        tell_json([{"image": image_name(*one), "unpinned": one not in not_pinned} for one in named])
    for one in () if as_json else named:
        if one in not_pinned:
            click.echo(f"mirror: {image_name(*one)} was not pinned by this name", err=True)
        else:
            click.echo(f"{image_name(*one)} is no longer pinned")
    sys.exit(1 if not_pinned else 0)
