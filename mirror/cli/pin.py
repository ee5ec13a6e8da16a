"""``mirror pin`` and ``mirror unpin``: protect images from eviction."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli import fleet
from mirror.cli.ask import images_of, on_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.fleet_documents import Change
from mirror.names import Reference, Repository, image_name

if TYPE_CHECKING:
    from mirror.storage.store import Store


@click.command(short_help="Protect images from eviction.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@fleet.here_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pin(
    images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], here: bool, as_json: bool
) -> None:
    """Protects images from eviction and age limits. A pinned tag protects whatever it currently refers to, with everything cached of it.

    Nothing is downloaded; use mirror pull for that. In a fleet with a token, all mirrors pin them.
    """
    named = images_of(images)

    async def work(store: Store) -> list[dict[str, Any]]:
        return [{"image": image_name(*one), "pinned": True, "cached": await store.pin(*one)} for one in named]

    settings = settings_or_exit(config, cache_dir, upstreams)
    done = on_store(settings, work)
    if as_json:
        print_json(done)
    for one in () if as_json else done:
        rest = "" if one["cached"] else "; it is not cached yet: mirror pull downloads it, or the first client that asks for it"
        click.echo(f"{one['image']} is pinned{rest}")
    told = fleet.tell(settings, here, Change("pin", tuple(image_name(*one) for one in named)))
    sys.exit(1 if told.faults else 0)


@click.command(short_help="Remove images' protection from eviction.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@fleet.here_option
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unpin(
    images: Sequence[str], config: Path | None, cache_dir: str | None, upstreams: tuple[str, ...], here: bool, as_json: bool
) -> None:
    """Removes images' protection from eviction, at all mirrors of a fleet with a token. The exit status is 1 if one was not pinned under that exact name."""
    named = images_of(images)

    async def work(store: Store) -> list[tuple[Repository, Reference]]:
        return [one for one in named if not await store.unpin(*one)]

    settings = settings_or_exit(config, cache_dir, upstreams)
    not_pinned = on_store(settings, work)
    told = fleet.tell(settings, here, Change("unpin", tuple(image_name(*one) for one in named)))
    not_pinned = [one for one in not_pinned if image_name(*one) not in told.did]
    if as_json:
        print_json([{"image": image_name(*one), "unpinned": one not in not_pinned} for one in named])
    for one in () if as_json else named:
        if one in not_pinned:
            click.echo(f"mirror: {image_name(*one)} was not pinned under this name", err=True)
        else:
            click.echo(f"{image_name(*one)} is no longer pinned")
    sys.exit(1 if not_pinned or told.faults else 0)
