"""``mirror ls``: lists cached images."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cache.freshness import is_fresh
from mirror.cache.image_documents import describe
from mirror.cli.ask import inventory
from mirror.cli.fleet import fleet_option
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import ago, print_json, table
from mirror.storage.inventory import ORDERS, Image
from mirror.units import format_size


@click.command(short_help="List cached images.")
@click.argument("search", nargs=-1)
@cache_options
@click.option(
    "--sort",
    type=click.Choice(ORDERS),
    default="name",
    help="Sort by name, or with the most recently pulled, most recently fetched or largest first.",
)
@fleet_option
@click.option("--limit", type=click.IntRange(1, 10**9), metavar="N", help="Show at most N images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(
    search: tuple[str, ...],
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    sort: str,
    limit: int | None,
    fleet: bool,
    as_json: bool,
) -> None:
    """Lists cached images whose name contains every word of SEARCH, or whose digest begins with it.

    SIZE is how much of an image is cached; SHARED is the part of it that other images share.
    With --fleet, it is what any mirror of the fleet has, and which.
    """
    settings = settings_or_exit(config, cache_dir, upstreams)
    if fleet:
        from mirror.cli.fleet_images import print_images

        print_images(settings, " ".join(search), sort, limit, as_json)
    with inventory(settings) as asked:
        page = asked.images(" ".join(search), sort, 0, limit)
    ttl = settings.cache.tag_ttl
    if as_json:
        print_json({"total": page.total, "images": [describe(image, ttl) for image in page.entries]})
        return
    rows = [
        (
            str(image),
            ",".join(platform.removeprefix("linux/") for platform in image.platforms) or "-",
            format_size(image.size),
            format_size(image.shared),
            ago(image.fetched),
            ago(image.pulled),
            state(image, ttl),
        )
        for image in page.entries
    ]
    if not rows:
        words = " ".join(search)
        click.echo(f"mirror: no cached image matches {words!r}" if words else "mirror: nothing is cached yet", err=True)
        return
    click.echo(table(("IMAGE", "PLATFORM", "SIZE", "SHARED", "FETCHED", "PULLED", "STATE"), rows, ("SIZE", "SHARED")), nl=False)
    if len(rows) < page.total:
        click.echo(f"{page.total - len(rows)} more", err=True)


def state(image: Image, ttl: float) -> str:
    """Returns an image's state in a few words."""
    words = ["hosted" if image.pushed is not None else "fresh" if is_fresh(image.checked, ttl) else "stale"]
    words += ["pinned"] if image.pinned else ["listed"] if image.listed else []
    words += ["incomplete"] if image.missing else []
    return ", ".join(words)
