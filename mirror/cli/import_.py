"""``mirror import``: images from a tar or a folder into the cache."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.ask import as_invoker, fail, on_guarded_store
from mirror.cli.options import cache_options, settings_or_exit
from mirror.cli.selection import parse_platform
from mirror.cli.text import os_error_text, print_json, table
from mirror.config import ALIASES, DEFAULT_REGISTRY
from mirror.errors import Invalid, MirrorError
from mirror.names import Reference, Repository, parse_image
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.bundles.importing import Import
    from mirror.bundles.received import Received
    from mirror.bundles.sources import Source
    from mirror.cache.guarding import Guard
    from mirror.storage.store import Store

_LARGEST_KEY = 64 * 1024


@click.command("import", short_help="Take images from a tar or a folder into the cache.")
@click.argument("archives", nargs=-1, required=True, metavar="FILE|DIR|-...")
@click.option("--as", "name", metavar="NAME", help="The name of an image that has none in the archive.")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="PLATFORM",
    help="Only this platform, such as linux/arm64; repeatable.  [all in the archive]",
)
@click.option("--pin", is_flag=True, help="Protect the images from eviction.")
@click.option("--dry-run", is_flag=True, help="Report what would come in, and change nothing.")
@click.option(
    "--require-key",
    "key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Take only a bundle that is signed by this Ed25519 public key (PEM).",
)
@click.option(
    "--want", type=click.Path(path_type=Path), metavar="FILE", help="List the images that lack something, for `mirror export -f`."
)
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def import_(
    archives: tuple[str, ...],
    name: str | None,
    platforms: tuple[str, ...],
    pin: bool,
    dry_run: bool,
    key: Path | None,
    want: Path | None,
    config: Path | None,
    cache_dir: str | None,
    upstreams: tuple[str, ...],
    as_json: bool,
) -> None:
    """Takes images into the cache: bundles of `mirror export`, OCI layouts, and what `docker save`, `podman save`, skopeo, buildah and crane write.

    Each is a tar, compressed with gzip or zstd or not, the first of its pieces (lab.tar.000), a folder, or - for standard input. What is cached already is not
    read again, and an interrupted import goes on when it is run again. An image is served once all of it is here. The exit status is 1 if one is not. SEEN is when the
    mirror that wrote a bundle first learnt what the tag means.
    """
    from mirror.bundles.importing import Wishes

    settings = settings_or_exit(config, cache_dir, upstreams)
    sources = _sources(archives)
    wishes = Wishes(
        _parse,
        [parse_platform(one) for one in platforms] or None,
        None if name is None else _checked(name),
        pin,
        dry_run,
        None if key is None else _key(key),
    )

    async def work(store: Store, guard: Guard | None) -> list[Import]:
        from mirror.bundles.importing import Import, Importer
        from mirror.bundles.signing import KeyUnusable, SignatureWrong
        from mirror.cli.bars import Bars

        done = [Import(source, wishes) for source in sources]
        with contextlib.closing(Importer(store, guard, is_closed=settings.access is not None)) as importer:
            async with Bars(done) if os.isatty(2) and not as_json else contextlib.nullcontext():
                for this in done:
                    try:
                        await importer.run(this)
                    except KeyUnusable as error:
                        fail(f"--require-key {key}: {error}", 2)
                    except SignatureWrong as error:
                        fail(f"{this}: {error}")
                    except MirrorError as error:
                        fail(f"{this}: {error.message}")
        return done

    with contextlib.ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        done = on_guarded_store(settings, work)
    images = [image for this in done for image in this.images]
    if want is not None and not dry_run:
        _write_want(want, images)
    _print(images, done, dry_run, want, as_json)
    sys.exit(1 if any(image.fault for image in images) else 0)


def _print(images: Sequence[Received], done: Sequence[Import], dry_run: bool, want: Path | None, as_json: bool) -> None:
    size = sum(this.size for this in done)
    if as_json:
        print_json({"images": [image.document() for image in images], "size": size})
        return
    states = {"imported": "would come in", "held": "would be held", "refused": "would be refused"} if dry_run else {}
    rows = [
        [
            str(image),
            ", ".join(image.platforms) or "-",
            image.seen or "-",
            format_size(image.came),
            states.get(image.state, image.state),
        ]
        for image in images
    ]
    click.echo(table(("IMAGE", "PLATFORMS", "SEEN", "NEW", "STATE"), rows, ("NEW",)), nl=False)
    for image in images:
        if image.fault:
            click.echo(f"mirror: {image} {image.fault}", err=True)
        elif image.lacking:
            click.echo(f"mirror: {image}: other platforms lack {', '.join(map(str, image.lacking))}", err=True)
        for note in image.notes:
            click.echo(f"mirror: {image} {note}", err=True)
    for image in images:
        if image.rebuilt and not image.fault:
            click.echo(
                f"{image}: its manifest was made here, {image.digest}, since `docker save` had kept none: it is not the registry's"
            )
    served = sum(not image.fault for image in images)
    total = f"{format_size(size)} {'would be new' if dry_run else 'new'}"
    click.echo(
        f"{'1 image' if len(images) == 1 else f'{len(images)} images'}: {served} complete, {len(images) - served} not; {total}"
    )
    if want is None and any(image.lacking for image in images):
        click.echo("--want want.txt writes a list of what is lacking, for `mirror export -f want.txt` where there is a network")


def _write_want(path: Path, images: Sequence[Received]) -> None:
    """One line for each image that lacks something; what it lacks is a comment."""
    lines = [
        f"{image}  # lacks {' '.join(map(str, image.lacking))}\n"
        for image in images
        if image.lacking and image.repository is not None
    ]
    try:
        with as_invoker():
            path.write_text("".join(lines))
    except OSError as error:
        fail(f"--want {path}: cannot be written: {os_error_text(error)}")


def _sources(archives: Sequence[str]) -> list[Source]:
    from mirror.bundles.archive import ArchiveInvalid
    from mirror.bundles.sources import sources_of

    if "-" in archives and sys.stdin is None:
        # Another file has its number by now.
        raise click.UsageError("standard input is closed: send it an archive, or give a file")
    try:
        # Unbuffered, so that a pipe's bytes are copied once; never closed.
        return sources_of(archives, lambda: io.FileIO(0, "rb", closefd=False))
    except ArchiveInvalid as error:
        raise click.UsageError(error.message) from None
    except OSError as error:
        raise click.UsageError(f"{os_error_text(error)}") from None


def _parse(name: str) -> tuple[Repository, Reference]:
    return parse_image(name, DEFAULT_REGISTRY, ALIASES)


def _checked(name: str) -> str:
    try:
        _parse(name)
    except Invalid as error:
        raise click.BadParameter(error.message, param_hint="--as") from None
    return name


def _key(path: Path) -> bytes:
    from mirror.regular_files import read_file

    try:
        return read_file(path, _LARGEST_KEY, follow=True)
    except OSError as error:
        raise click.UsageError(f"--require-key {path}: cannot be read: {os_error_text(error)}") from None
