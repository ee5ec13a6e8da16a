"""``mirror pull``: downloads images before clients ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform as machine
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.ask import images_of, on_cache
from mirror.cli.compose import images_in
from mirror.cli.kubernetes import images_in_manifests
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.text import print_json
from mirror.config import Settings
from mirror.disk_room import measure
from mirror.errors import MirrorError, StorageFull
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.cache.cache import Cache
    from mirror.cache.pull import Pull

_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?")
_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
"""Machine names of ``uname -m`` and of images (image-spec 1.1, "image-index.md": GOARCH), where they differ."""


@click.command(short_help="Download images in advance.")
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@cache_options
@click.option(
    "--file",
    "-f",
    "lists",
    multiple=True,
    metavar="FILE",
    help="Read image names from a file, one per line, with # comments; - is standard input.",
)
@click.option(
    "--compose",
    "composed",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The images of a Compose file's services.",
)
@click.option(
    "--kubernetes",
    "manifests",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="The images of the containers in Kubernetes manifests.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="PLATFORM",
    help="A platform such as linux/arm64; repeatable.  [this machine's]",
)
@click.option("--all-platforms", is_flag=True, help="Everything that an index lists, including attestations.")
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
    names = [*images, *(name for file in lists for name in listed(file))]
    names += [name for file in composed for name in images_in(file)]
    names += [name for place in manifests for name in images_in_manifests(place)]
    if not names:
        raise click.UsageError("give image names, or a file of them with --file, --compose or --kubernetes")
    if platforms and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    named = dict.fromkeys(images_of(names))
    wanted = None if all_platforms else [parse_platform(one) for one in platforms] or [this_platform()]
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
                from mirror.cli.attached import fetch_attached_to

                lacking.extend(await fetch_attached_to(cache, named, wanted))
        for this in pulls:
            if (str(this) not in faults or str(this) in full) and (missing := cache.pulls.missing(this)):
                faults[str(this)] = _why_missing(settings, missing, (await cache.inventory.totals()).size)
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


def _why_missing(settings: Settings, missing: int, cached: int) -> str:
    """Why blobs are not kept: for want of room on the disk or within the limit, whichever leaves less. `cached` is in bytes."""
    folder, limit = settings.cache.dir, settings.cache.max_size
    room = measure(folder, settings.cache.min_free)
    kept = f"{missing} of its blobs {'is' if missing == 1 else 'are'} not kept"
    if room.free - room.reserve < limit - cached:
        return (
            f"{kept}: the disk of {folder} has {format_size(room.free)} free, of which cache.min_free leaves {format_size(room.reserve)} to others;"
            " make room on it, or set cache.dir to a larger one"
        )
    return f"{kept}: they had to make room for others within cache.max_size ({format_size(limit)}); set a larger one, or pull fewer images"


def this_platform() -> str:
    """Returns the platform of this machine's containers."""
    architecture = machine.machine().lower()
    return f"linux/{_MACHINES.get(architecture, architecture)}"


def parse_platform(text: str) -> str:
    """Returns a platform as images name it; without an operating system, Linux is meant. Raises click.BadParameter."""
    platform = text.strip().lower() if "/" in text else f"linux/{text.strip().lower()}"
    if not _PLATFORM.fullmatch(platform):
        raise click.BadParameter(
            f"a platform such as linux/arm64 or linux/arm/v7 is expected; found {text[:80]!r}", param_hint="--platform"
        )
    return platform


def listed(file: str) -> list[str]:
    """Returns the image names in a file; - is standard input. Raises click.UsageError with the line number of a wrong one."""
    try:
        # Opening fails if standard input is closed. Editors on Windows begin a file with a byte order mark.
        with open(0 if file == "-" else file, encoding="utf-8-sig", closefd=file != "-") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--file {file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        name = re.sub(r"(^|\s)#.*", "", line).strip()
        if name:
            try:
                images_of([name])
            except click.UsageError as error:
                raise click.UsageError(f"{file}, line {number}: {error.message}") from None
            names.append(name)
    return names


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
