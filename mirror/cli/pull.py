"""``mirror pull``: downloads images before clients ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import images_of, on_cache
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.selection import image_options, names_of, platforms_of
from mirror.cli.text import print_json
from mirror.errors import MirrorError, StorageFull
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.pull import Pull


@click.command(short_help="Download images in advance.")
@image_options
@cache_options
@click.option("--referrers", is_flag=True, help="Also signatures, attestations, SBOMs and whatever else refers to the images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pull(
    images: tuple[str, ...],
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    lists: tuple[str, ...],
    composed: tuple[Path, ...],
    manifests: tuple[Path, ...],
    platforms: tuple[str, ...],
    all_platforms: bool,
    referrers: bool,
    as_json: bool,
) -> None:
    """Downloads images into the cache, with everything that a client needs to pull them while upstream is unreachable.

    Tags are checked with upstream, and only missing content is downloaded. After an interruption or a failed download, run it again to continue. Beside a
    running mirror, each blob is downloaded only once. The exit status is 1 if an image is incomplete.
    """
    names = names_of(images, lists, composed, manifests)
    if not names:
        raise click.UsageError("give image names, or a file of them with --file, --compose or --kubernetes")
    named = dict.fromkeys(images_of(names))
    wanted = platforms_of(platforms, all_platforms)
    settings = settings_or_exit(config, cache_dir, upstreams)

    async def work(cache: Cache) -> list[dict[str, Any]]:
        from mirror.cache.pull import Pull

        pulls = [Pull(repository, reference, wanted) for repository, reference in named]
        faults: dict[str, str] = {}
        full: set[str] = set()

        async def one(this: Pull) -> None:
            try:
                await cache.pulls.pull(this)
            except MirrorError as error:
                faults[str(this)] = error.message
                if isinstance(error, StorageFull):
                    full.add(str(this))
            if shown is None and not as_json:
                click.echo(_line(_outcome(this, faults.get(str(this)))))

        async with bars(pulls) if os.isatty(2) and not as_json else contextlib.nullcontext() as shown:
            await asyncio.gather(*(one(this) for this in pulls))
            if referrers:
                from mirror.cache.attached import fetch_attached

                lacking.extend((await fetch_attached(cache.pulls, cache.lists, pulls)).faults)
        for this in pulls:
            if (str(this) not in faults or str(this) in full) and (why := await cache.pulls.why_missing(this)):
                faults[str(this)] = why
        return [_outcome(this, faults.get(str(this))) for this in pulls]

    lacking: list[str] = []
    report = on_cache(settings, work)
    for fault in lacking[:3]:
        click.echo(f"mirror: signatures and the like may be missing: {fault}", err=True)
    failed = [outcome for outcome in report if outcome["fault"]]
    if as_json:
        print_json(report)
    else:
        for outcome in failed:
            click.echo(f"mirror: {outcome['image']}: {outcome['fault']}", err=True)
        fetched = [outcome for outcome in report if not outcome["fault"] and outcome["fetched"]]
        size = format_size(sum(outcome["fetched"] for outcome in report))
        there = len(report) - len(fetched) - len(failed)
        counted = "1 image" if len(report) == 1 else f"{len(report)} images"
        click.echo(f"{counted}: {len(fetched)} fetched, {there} already there, {len(failed)} failed; {size} in all")
    sys.exit(1 if failed or lacking else 0)


def _outcome(this: Pull, fault: str | None) -> dict[str, Any]:
    return {
        "image": str(this),
        "size": this.total,
        "fetched": this.fetched,
        "blobs": len(this.blobs),
        "unchecked": this.unchecked or None,
        "fault": fault,
    }


def _line(outcome: dict[str, Any]) -> str:
    if outcome["fault"]:
        return f"{outcome['image']}: failed"
    fetched = (
        f"fetched {format_size(outcome['fetched'])} of {format_size(outcome['size'])}" if outcome["fetched"] else "already there"
    )
    return f"{outcome['image']}: {fetched}{', though upstream could not be asked' if outcome['unchecked'] else ''}"


def bars(pulls: Sequence[Pull]) -> contextlib.AbstractAsyncContextManager[object]:
    """Shows on standard error how far pulls are."""
    from mirror.cli.bars import Bars

    return Bars(pulls)
